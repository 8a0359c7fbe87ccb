"""Stage of Wan 2.2's decoder: blocks that upsample, with a shortcut around all of them that has no weights.

The shortcut copies each input channel to some of the outputs that one input value becomes: channels into
height, width and time. Source: github:Wan-Video/Wan2.2, wan/modules/vae2_2.py (DupUp3D).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor
from torch.autograd.function import once_differentiable

from .decoder_blocks import Block, split_frames
from .state import DecoderState


@dataclass(frozen=True)
class ResidualStage:
    """Blocks of a stage, the last of which upsamples, with the shortcut around them."""

    blocks: tuple[Block, ...]

    @property
    def num_states(self) -> int:
        """Number of state tensors of all blocks together."""
        return count_states(self.blocks)

    @property
    def doubles_time(self) -> bool:
        """Whether the stage makes two frames of one."""
        return any(block.doubles_time for block in self.blocks)

    def __call__(
        self, x: Tensor, state: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        out, new_state = run_blocks(self.blocks, x, state, recompute, keep_state)
        return _AddCopies.apply(out, x, 2 if self.doubles_time else 1, not state), new_state


def count_states(blocks: Sequence[Block | ResidualStage]) -> int:
    """Return the number of state tensors of some blocks."""
    return sum(block.num_states for block in blocks)


def run_blocks(
    blocks: Sequence[Block | ResidualStage],
    x: Tensor,
    state: DecoderState,
    recompute: bool,
    keep_state: bool,
) -> tuple[Tensor, DecoderState]:
    """Return the output of blocks one after the other, and the new state of all of them, in their order."""
    new_state: list[Tensor] = []
    block_states = iter(state)
    for block in blocks:
        before = tuple(islice(block_states, block.num_states))
        x, after = block(x, before, recompute, keep_state)
        new_state += after
    return x, tuple(new_state)


def copy_channels(x: Tensor, channels: int, times: int) -> Tensor:
    """Return the shortcut's output `B C (times T) 2H 2W` for x `B I T H W`, where C is `channels`.

    The C * 4 * times outputs of one place take equally many copies of each of its I input values, in order.
    """
    copies = repeat(x, "b i t h w -> b (i n) t h w", n=channels * times * 4 // x.shape[1])
    return rearrange(copies, "b (c n p q) t h w -> b c (t n) (h p) (w q)", n=times, p=2, q=2)


def sum_copies(grad_output: Tensor, channels: int, times: int) -> Tensor:
    """Return the gradient of `copy_channels` with respect to x, which has `channels` of them."""
    copies = rearrange(grad_output, "b c (t n) (h p) (w q) -> b (c n p q) t h w", n=times, p=2, q=2)
    return reduce(copies, "b (i n) t h w -> b i t h w", "sum", i=channels)


class _AddCopies(torch.autograd.Function):
    """Add the shortcut to the output of a stage, in place; saves nothing."""

    @staticmethod
    def forward(ctx, out, x, times, starts_clip):
        # A clip's first frame stays one frame: of its two copies in time the first is left out.
        ctx.shape, ctx.times, ctx.skipped = x.shape, times, times - 1 if starts_clip else 0
        ctx.mark_dirty(out)
        for frames in split_frames(x.shape[2]):
            copies = copy_channels(x[:, :, frames], out.shape[1], times)
            begin, end = (times * place - ctx.skipped for place in (frames.start, frames.stop))
            out[:, :, max(begin, 0) : end] += copies[:, :, max(-begin, 0) :]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        grad_input = grad_output.new_empty(ctx.shape)
        for frames in split_frames(ctx.shape[2]):
            begin, end = (ctx.times * place - ctx.skipped for place in (frames.start, frames.stop))
            grad_chunk = F.pad(grad_output[:, :, max(begin, 0) : end], (0, 0, 0, 0, max(-begin, 0), 0))
            grad_input[:, :, frames] = sum_copies(grad_chunk, ctx.shape[1], ctx.times)
        return grad_output, grad_input, None, None
