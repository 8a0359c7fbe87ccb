"""WAN's video decoder in pieces, differentiable, with everything it remembers as plain values.

diffusers and ComfyUI keep the frames that the causal convolutions look back on in lists that they overwrite.
Here a step takes what the past left and returns what it leaves, so that a gradient can be followed across
steps, cut, or computed step by step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from ..wan.spec import LATENT_MEAN, LATENT_STD, TEMPORAL_STRIDE
from .decoder_blocks import Block, Past, Upsampling
from .decoder_layouts import decoder_blocks, decoder_dtype


@dataclass(frozen=True)
class FrozenDecoder:
    """The decoder of a WAN 2.1 VAE; its weights get no gradient, its latents do."""

    blocks: list[Block]
    dtype: torch.dtype
    recompute: bool = False
    """In backward, compute half of each residual block again instead of keeping it."""

    @classmethod
    def of(cls, vae: nn.Module, recompute: bool = False) -> "FrozenDecoder":
        """The decoder of diffusers' `AutoencoderKLWan`, or of a VAE in the native layout, such as ComfyUI's
        `WanVAE`; the VAE's encoder may be freed. ValueError for WAN 2.2's, which is built differently.
        """
        return cls(decoder_blocks(vae), decoder_dtype(vae), recompute)

    def stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Pixels `B 3 n H W` of one latent after the other, not clamped, nominally in [-1, 1].

        `latents` is `B 16 f h w` in model space; latent k gives the frames wan.frames_of_latent(k).
        """
        past = None
        for latent in latents.split(1, 2):
            pixels, past = self.step(latent, past)
            yield pixels

    def step(self, latents: Tensor, past: Past | None = None, shallow: int = 0) -> tuple[Tensor, Past]:
        """Pixels `B 3 n H W` of some latents `B 16 k h w`, and what they leave; past None starts a clip.

        Of the first `shallow` latents only the small stages are decoded, and they show no pixels; `past` is
        then the one of `joined_past`. It may be in host memory.
        """
        return self._decoded(latents, past, shallow, leaves=True)

    def end(self, latents: Tensor, past: Past | None = None, shallow: int = 0) -> Tensor:
        """The pixels of `step` for latents that nothing comes after: what they would leave is not made."""
        return self._decoded(latents, past, shallow, leaves=False)[0]

    def _decoded(self, latents: Tensor, past: Past | None, shallow: int, leaves: bool) -> tuple[Tensor, Past]:
        x = unwhitened(latents).to(self.dtype)
        after: list[Tensor] = []
        waiting = iter(past or ())
        for index, block in enumerate(self.blocks):
            if shallow and index == self._large_from:
                x = x[:, :, TEMPORAL_STRIDE * shallow :]
            x, left = block(x, tuple(islice(waiting, block.carried)), self.recompute, leaves)
            after += left
        return x, tuple(after)

    def joined_past(self, small: Past, large: Past) -> Past:
        """For a step with shallow latents: what was left before them, to the small stages, and after them, to
        the large ones.
        """
        carried = sum(block.carried for block in self.blocks[: self._large_from])
        return (*small[:carried], *large[carried:])

    @property
    def _large_from(self) -> int:
        """The block where all frames are there, at half of the size."""
        doubling = [index for index, block in enumerate(self.blocks) if _doubles_time(block)]
        return doubling[-1] + 1


def _doubles_time(block: Block) -> bool:
    return isinstance(block, Upsampling) and block.in_time is not None


def unwhitened(latents: Tensor) -> Tensor:
    """From model space to what the VAE's decoder takes."""
    mean, std = (latents.new_tensor(values).view(-1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    return latents * std + mean
