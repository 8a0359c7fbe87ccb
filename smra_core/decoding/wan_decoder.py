"""WAN's video decoder in steps, differentiable, with its state as plain values.

diffusers and ComfyUI keep the frames that causal convolutions look back on (the feature cache) in lists that
they overwrite. Here a step takes the decoder state as an argument and returns the new state, so that
gradients can flow across steps, be cut, or be computed step by step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..wan.latents import denormalize
from ..wan.spec import TEMPORAL_STRIDE
from .decoder_blocks import Block
from .decoder_layouts import get_decoder_dtype, list_decoder_blocks
from .residual_stage import ResidualStage, count_states, run_blocks
from .state import DecoderState


@dataclass(frozen=True)
class WanVideoDecoder:
    """Decoder of WAN's VAE, of 2.1 or 2.2; its weights get no gradient, its latents do."""

    blocks: list[Block | ResidualStage]
    dtype: torch.dtype
    recompute: bool = False
    """Whether half of each residual block is recomputed in the backward pass instead of saved."""

    @classmethod
    def of(cls, vae: nn.Module, recompute: bool = False) -> "WanVideoDecoder":
        """Build the decoder from diffusers' `AutoencoderKLWan`, or from a VAE in the native layout, such as
        ComfyUI's two `WanVAE`; the VAE's encoder may be freed. ValueError for any other layout.
        """
        return cls(list_decoder_blocks(vae), get_decoder_dtype(vae), recompute)

    def stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the pixels `B 3 n H W` of one latent after the other, not clamped, nominally in [-1, 1].

        `latents` is `B C f h w` in model space; latent k gives the frames wan.frames_of_latent(k).
        """
        state = None
        for latent in latents.split(1, 2):
            pixels, state = self.step(latent, state)
            yield pixels

    def step(
        self, latents: Tensor, state: DecoderState | None = None, small_stages_only: int = 0
    ) -> tuple[Tensor, DecoderState]:
        """Decode latents `B C k h w` to pixels `B 3 n H W`; return them and the new state.

        State None starts a clip; a state may be in host memory. The first `small_stages_only` latents run
        through the small stages only and give no pixels; `state` is then the one of `join_states`.
        """
        return self._decode(latents, state, small_stages_only, keep_state=True)

    def finish(
        self, latents: Tensor, state: DecoderState | None = None, small_stages_only: int = 0
    ) -> Tensor:
        """Return the pixels of `step` alone, for a clip's last latents; no new state is made."""
        return self._decode(latents, state, small_stages_only, keep_state=False)[0]

    def _decode(
        self, latents: Tensor, state: DecoderState | None, small_stages_only: int, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        state, num_states = state or (), count_states(self._small_blocks)
        x = denormalize(latents).to(self.dtype)
        x, small = run_blocks(self._small_blocks, x, state[:num_states], self.recompute, keep_state)
        x = x[:, :, TEMPORAL_STRIDE * small_stages_only :]
        large_blocks = self.blocks[len(self._small_blocks) :]
        x, large = run_blocks(large_blocks, x, state[num_states:], self.recompute, keep_state)
        return x, (*small, *large)

    def join_states(self, small: DecoderState, large: DecoderState) -> DecoderState:
        """Join two states for a step with small_stages_only latents: that before them, for the small stages,
        and that after them, for the large stages.
        """
        num_states = count_states(self._small_blocks)
        return (*small[:num_states], *large[num_states:])

    @property
    def _small_blocks(self) -> list[Block | ResidualStage]:
        """Blocks up to the last that doubles time; those after it work on all frames, and are nearly all of
        the cost.
        """
        doubling = [index for index, block in enumerate(self.blocks) if block.doubles_time]
        return self.blocks[: doubling[-1] + 1]
