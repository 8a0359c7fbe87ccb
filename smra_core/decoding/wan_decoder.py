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

from ..wan.latents import denormalize
from ..wan.spec import TEMPORAL_STRIDE
from .decoder_blocks import Block, Upsample3d
from .decoder_layouts import decoder_blocks, decoder_dtype
from .state import DecoderState


@dataclass(frozen=True)
class WanVideoDecoder:
    """The decoder of a WAN 2.1 VAE; its weights get no gradient, its latents do."""

    blocks: list[Block]
    dtype: torch.dtype
    recompute: bool = False
    """In backward, compute half of each residual block again instead of keeping it."""

    @classmethod
    def of(cls, vae: nn.Module, recompute: bool = False) -> "WanVideoDecoder":
        """The decoder of diffusers' `AutoencoderKLWan`, or of a VAE in the native layout, such as ComfyUI's
        `WanVAE`; the VAE's encoder may be freed. ValueError for WAN 2.2's, which is built differently.
        """
        return cls(decoder_blocks(vae), decoder_dtype(vae), recompute)

    def stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Pixels `B 3 n H W` of one latent after the other, not clamped, nominally in [-1, 1].

        `latents` is `B 16 f h w` in model space; latent k gives the frames wan.frames_of_latent(k).
        """
        state = None
        for latent in latents.split(1, 2):
            pixels, state = self.step(latent, state)
            yield pixels

    def step(
        self, latents: Tensor, state: DecoderState | None = None, small_stages_only: int = 0
    ) -> tuple[Tensor, DecoderState]:
        """Pixels `B 3 n H W` of some latents `B 16 k h w`, and what they leave; past None starts a clip.

        Of the first `small_stages_only` latents only the small stages are decoded, and they show no pixels;
        `state` is then the one of `join_states`. It may be in host memory.
        """
        return self._decode(latents, state, small_stages_only, keep_state=True)

    def end(self, latents: Tensor, state: DecoderState | None = None, small_stages_only: int = 0) -> Tensor:
        """The pixels of `step` for latents that nothing comes after: what they would leave is not made."""
        return self._decode(latents, state, small_stages_only, keep_state=False)[0]

    def _decode(
        self, latents: Tensor, state: DecoderState | None, small_stages_only: int, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        x = denormalize(latents).to(self.dtype)
        after: list[Tensor] = []
        waiting = iter(state or ())
        for index, block in enumerate(self.blocks):
            if small_stages_only and index == self._large_from:
                x = x[:, :, TEMPORAL_STRIDE * small_stages_only :]
            x, next_state = block(x, tuple(islice(waiting, block.num_states)), self.recompute, keep_state)
            after += next_state
        return x, tuple(after)

    def join_states(self, small: DecoderState, large: DecoderState) -> DecoderState:
        """For a step with small_stages_only latents: what was left before them, to the small stages, and
        after them, to the large ones.
        """
        num_states = sum(block.num_states for block in self.blocks[: self._large_from])
        return (*small[:num_states], *large[num_states:])

    @property
    def _large_from(self) -> int:
        """The block where all frames are there, at half of the size."""
        doubling = [index for index, block in enumerate(self.blocks) if _doubles_time(block)]
        return doubling[-1] + 1


def _doubles_time(block: Block) -> bool:
    return isinstance(block, Upsample3d) and block.time_conv is not None
