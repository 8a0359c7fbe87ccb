"""Paths of the miniature's weight files."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
DIT_FILE, VAE_FILE = WEIGHTS / "wan_miniature_t2v.safetensors", WEIGHTS / "wan_miniature_vae.safetensors"
"""Files of DiT and VAE in WAN's native names, as WAN checkpoints are published."""
DINOV2_FILE = WEIGHTS / "dinov2_miniature.safetensors"
SEA_RAFT_FILE = WEIGHTS / "sea_raft_miniature.safetensors"
