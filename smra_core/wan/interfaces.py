"""Interfaces of the three parts of a WAN model.

They are implemented with diffusers (standalone/diffusers_wan.py) and in ComfyUI (nodes/host).
"""

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from .condition import NO_INPUTS, ExtraInputs
from .recompute import KeptBlocks
from .spec import WanSpec


class Prediction(NamedTuple):
    """Result of one evaluation of the DiT."""

    velocity: Tensor
    """Predicted velocity, `B C f h w`."""
    tokens: Tensor | None
    """Output of the block `token_block`, `B L D` with tokens in t, y, x order; None when none was asked for.
    """


class Denoiser(Protocol):
    """A frozen WAN DiT."""

    spec: WanSpec
    kept_blocks: KeptBlocks
    """Blocks that keep activations; it may be changed between steps."""

    def linears(self) -> dict[str, nn.Module]:
        """Return the blocks' linears by native name (`blocks.N.self_attn.q`); adapters replace their
        `forward`.
        """
        ...

    def velocity(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        context: Tensor,
        token_block: int | None = None,
        extra: ExtraInputs = NO_INPUTS,
    ) -> Prediction:
        """Predict the velocity of latents `B C f h w` at sigma `B`, given text context `B T 4096`.

        `token_block` is the index of the block whose output tokens are returned, too. `extra` is what a
        variant takes besides: image channels, CLIP features. Gradients flow to
        adapters and to the latents; `kept_blocks` says which blocks keep activations.
        """
        ...


class VideoCodec(Protocol):
    """A frozen WAN video VAE. Latents are in model space (see wan.latents.normalize)."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode `B 3 F H W` in [-1, 1], F = 4n+1, to the posterior's mean `B C f h w`, without gradient."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode `B C f h w` to `B 3 F H W`, clamped to [-1, 1], without gradient."""
        ...


class TextEncoder(Protocol):
    """A text encoder that turns captions into the context of the DiT."""

    def encode(self, prompts: list[str]) -> Tensor:
        """Return the context `B T 4096` of captions; positions after a caption's last token are zero."""
        ...
