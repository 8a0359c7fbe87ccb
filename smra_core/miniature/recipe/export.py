"""Writing the trained miniature: its WAN in native names, as any checkpoint comes, and its small teachers."""

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
from .train_dit import trained_dit
from .train_flow import trained_flow
from .train_patches import CONFIG, trained_patches
from .train_vae import trained_vae

TITLE = {"format": "pt", "modelspec.title": "SMRABooth miniature"}


def export_vae(build: Path, weights: Path | None = None) -> Path:
    """The VAE of a build folder, with WAN's latent statistics, in float16."""
    return _write(to_native_vae_state(trained_vae(build).state_dict()), _file(weights, "wan_miniature_vae"))


def export_dit(build: Path, weights: Path | None = None) -> Path:
    """The averaged DiT of a build folder, in float16."""
    return _write(to_native_dit_state(trained_dit(build).state_dict()), _file(weights, "wan_miniature_t2v"))


def export_flow(build: Path, weights: Path | None = None) -> Path:
    """The SEA-RAFT of a build folder, in float16."""
    path = _file(weights, "sea_raft_miniature")
    save_sea_raft(trained_flow(build), path)
    return path


def export_patches(build: Path, weights: Path | None = None) -> Path:
    """The DINOv2 of a build folder in timm's names, in float16."""
    state = trained_patches(build).vit.state_dict()
    return _write(state, _file(weights, "dinov2_miniature"), {HEADS_KEY: str(CONFIG.heads)})


def _file(weights: Path | None, name: str) -> Path:
    folder = weights or WEIGHTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.safetensors"


def _write(state: Mapping[str, Tensor], path: Path, about: Mapping[str, str] | None = None) -> Path:
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as draft:
        save_file(halves, draft, {**TITLE, **(about or {})})
    return path
