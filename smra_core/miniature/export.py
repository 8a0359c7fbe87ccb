"""Writing the trained miniature in WAN's native names, as any WAN checkpoint comes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..atomic_file import replacing
from ..native_names import native_dit_state, native_vae_state
from .train_dit import trained_dit, trained_vae

WEIGHTS = Path(__file__).parent / "weights"


def export_vae(build: Path, weights: Path = WEIGHTS) -> Path:
    """The VAE of a build folder, with WAN's latent statistics, in float16."""
    return _write(
        native_vae_state(trained_vae(build).state_dict()), weights / "wan_miniature_vae.safetensors"
    )


def export_dit(build: Path, weights: Path = WEIGHTS) -> Path:
    """The averaged DiT of a build folder, in float16."""
    return _write(
        native_dit_state(trained_dit(build).state_dict()), weights / "wan_miniature_t2v.safetensors"
    )


def _write(state: Mapping[str, Tensor], path: Path) -> Path:
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}
    with replacing(path) as draft:
        save_file(halves, draft, {"format": "pt", "modelspec.title": "SMRABooth miniature"})
    return path
