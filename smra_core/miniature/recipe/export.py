"""Export of the trained miniature: WAN in native names, as checkpoints have them, and its small encoders."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...encoders.dinov2_files import HEADS_KEY
from ...encoders.sea_raft import save_sea_raft
from ...storage.atomic_write import write_atomically
from ...wan.module_names import to_native_dit_state, to_native_vae_state
from ..weight_paths import WEIGHTS
from .train_dit import load_trained_dit
from .train_flow import load_trained_flow
from .train_patches import CONFIG, load_trained_dinov2
from .train_vae import load_trained_vae

TITLE = {"format": "pt", "modelspec.title": "SMRABooth miniature"}


def export_vae(build: Path, weights: Path | None = None) -> Path:
    """Write the VAE of a build folder, with WAN's latent statistics, in float16; return its path."""
    return _write(
        to_native_vae_state(load_trained_vae(build).state_dict()), _make_path(weights, "wan_miniature_vae")
    )


def export_dit(build: Path, weights: Path | None = None) -> Path:
    """Write the averaged DiT of a build folder in float16; return its path."""
    return _write(
        to_native_dit_state(load_trained_dit(build).state_dict()), _make_path(weights, "wan_miniature_t2v")
    )


def export_flow(build: Path, weights: Path | None = None) -> Path:
    """Write the SEA-RAFT of a build folder in float16; return its path."""
    path = _make_path(weights, "sea_raft_miniature")
    save_sea_raft(load_trained_flow(build), path)
    return path


def export_patches(build: Path, weights: Path | None = None) -> Path:
    """Write the DINOv2 of a build folder in timm's names, in float16; return its path."""
    state = load_trained_dinov2(build).vit.state_dict()
    return _write(state, _make_path(weights, "dinov2_miniature"), {HEADS_KEY: str(CONFIG.heads)})


def _make_path(weights: Path | None, name: str) -> Path:
    """Return the path of a weight file, in a folder that is made, or in the package's own."""
    folder = weights or WEIGHTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.safetensors"


def _write(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as draft:
        save_file(halves, draft, {**TITLE, **(metadata or {})})
    return path
