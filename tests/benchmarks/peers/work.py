"""What every trainer is given: the file of a random DiT, one picture's latents and its text."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.host import random_wan

RANK, RATE, CLIP = 32, 1e-4, 1.0
ROLES = ("q", "k", "v", "o", "ffn.0", "ffn.2")
"""The linears that get a LoRA: ten of each block."""
SIGMA = 0.7
"""Noise level at which velocities are compared."""


class Sizes(NamedTuple):
    """Sizes of a DiT."""

    blocks: int
    dim: int
    ffn: int
    heads: int


SIZES = {"wide": Sizes(2, 1536, 8960, 12), "tiny": Sizes(30, 128, 512, 1)}
"""The 1.3B's width with few blocks, and its number of blocks at a width that leaves Python and the calls of
torch alone.
"""


@dataclass(frozen=True)
class Work:
    """One picture to be learned by a DiT of these sizes, whose weights are in a file."""

    sizes: Sizes
    weights: Path
    side: int

    def make_inputs(self) -> tuple[Tensor, Tensor]:
        """Return latents `1 16 1 h w` and text `1 512 4096`."""
        generator = torch.Generator().manual_seed(1)
        size = self.side // 8
        latents = torch.randn(1, 16, 1, size, size, generator=generator)
        return latents, torch.randn(1, 512, 4096, generator=generator)


def write_weights(path: Path, sizes: Sizes) -> None:
    """Write a DiT of random weights, in native names."""
    random_wan.DIM, random_wan.FFN = sizes.dim, sizes.ffn
    state = random_wan.dit_state(sizes.blocks)
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def describe(velocity: Tensor) -> dict[str, list[float]]:
    """Return a sample of a velocity, by which the driver sees that all models are the same one."""
    return {"velocity": velocity.detach().float().flatten()[::97][:64].tolist()}
