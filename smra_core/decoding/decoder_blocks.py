"""The blocks of WAN's video decoder as single steps of autograd that save as little as they can.

A block takes `B C T H W` and what its convolutions were left by the past, and returns its output and what it
leaves, or nothing in its place where nothing comes after. A past that waits in host memory is fetched by the
block that needs it. Inside, a block works through a few frames at a time, so that what it computes on the way
is never alive for the whole clip.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .frozen_layers import LOOK_BACK, NormedConv, convolve, frozen_conv, frozen_norm, input_gradient
from .state import DecoderState, to_device_of

FRAMES_AT_ONCE = 4
"""Frames whose inner activations are alive together; at least LOOK_BACK."""


def split_frames(frames: int) -> Iterator[slice]:
    """Pieces of a few frames each, the first the longest, none shorter than the look back but a lone one."""
    stops = list(range(frames, 0, -FRAMES_AT_ONCE))[::-1]
    if len(stops) > 1 and stops[0] < LOOK_BACK:
        del stops[0]
    starts = [0, *stops[:-1]]
    return map(slice, starts, stops)


class ConvIn(NamedTuple):
    """From latents to the width of the decoder."""

    post_quant_conv: nn.Module
    conv: nn.Module
    num_states = 1

    def __call__(
        self, x: Tensor, state_before: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        seen = _prepend_state(frozen_conv(x, self.post_quant_conv), state_before)
        return frozen_conv(seen, self.conv), _state_after(seen, keep_state)


class Attention(NamedTuple):
    """Every frame attends to itself."""

    norm: nn.Module
    to_qkv: nn.Module
    proj: nn.Module
    num_states = 0

    def __call__(
        self, x: Tensor, state_before: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        height, width = x.shape[-2:]
        frames = rearrange(frozen_norm(x, self.norm), "b c t h w -> (b t) c h w")
        qkv = rearrange(frozen_conv(frames, self.to_qkv), "n (q c) h w -> q n 1 (h w) c", q=3)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))
        attended = rearrange(attended, "n 1 (h w) c -> n c h w", h=height, w=width).contiguous()
        return x + rearrange(frozen_conv(attended, self.proj), "(b t) c h w -> b c t h w", b=len(x)), ()


class Upsample3d(NamedTuple):
    """Twice the size; where time doubles too, a clip's first frame stays alone."""

    time_conv: nn.Module | None
    conv: nn.Module

    @property
    def num_states(self) -> int:
        return int(self.time_conv is not None)

    def __call__(
        self, x: Tensor, state_before: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        after = ()
        if self.time_conv is not None:
            lone = 0 if state_before else 1  # a clip's first frame does not enter the time convolution
            seen = _prepend_state(x[:, :, lone:], state_before)
            after = _state_after(seen, keep_state)
            if x.shape[2] > lone:
                doubled = frozen_conv(seen, self.time_conv)
                doubled = rearrange(doubled, "b (n c) t h w -> b c (t n) h w", n=2)
                x = torch.cat([x[:, :, :lone], doubled], 2) if lone else doubled
        return _UpsampledConv.apply(x, self.conv), after


@dataclass(frozen=True)
class Residual:
    """Two normed convolutions beside a shortcut. Saves its input, and with `recompute` nothing else."""

    first: NormedConv
    second: NormedConv
    shortcut: nn.Module | None
    """A convolution of one tap, where the width changes."""
    num_states = 2

    def __call__(
        self, x: Tensor, state_before: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        out, *after = _ResidualStep.apply(x, *(state_before or (None, None)), self, recompute, keep_state)
        return out, tuple(after)

    def apply_shortcut(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return x
        return convolve(x, self.shortcut.weight, self.shortcut.bias)

    def shortcut_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return gradient if self.shortcut is None else input_gradient(gradient, self.shortcut.weight, shape)


class Head(NamedTuple):
    """From the decoder's width to pixels. Saves its input."""

    layer: NormedConv
    num_states = 1

    def __call__(
        self, x: Tensor, state_before: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        out, *after = _HeadStep.apply(x, *(state_before or (None,)), self.layer, keep_state)
        return out, tuple(after)


Block = ConvIn | Attention | Upsample3d | Residual | Head


def _prepend_state(x: Tensor, state_before: DecoderState) -> Tensor:
    state = (
        to_device_of(state_before[0], x)
        if state_before
        else x.new_zeros(*x.shape[:2], LOOK_BACK, *x.shape[3:])
    )
    return torch.cat([state, x], 2)


def _state_after(seen: Tensor, keep_state: bool) -> DecoderState:
    # A clone, because a view would keep all that was seen alive.
    return (seen[:, :, -LOOK_BACK:].clone(),) if keep_state else ()


class _ResidualStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, state_before_1, state_before_2, block, recompute, keep_state):
        ctx.block, ctx.recompute, ctx.has_state = block, recompute, state_before_1 is not None
        ctx.set_materialize_grads(False)
        out = x.new_empty(len(x), len(block.second.conv.weight), *x.shape[2:])
        hidden = None if recompute else torch.empty_like(out)
        state_1, state_2 = state_before_1, state_before_2
        for frames in split_frames(x.shape[2]):
            inner, state_1 = block.first.forward(x[:, :, frames], state_1)
            if hidden is not None:
                hidden[:, :, frames] = inner
            tile, state_2 = block.second.forward(inner, state_2)
            tile += block.apply_shortcut(x[:, :, frames])
            out[:, :, frames] = tile
        ctx.save_for_backward(x, state_before_1 if recompute else hidden)
        return (out, *_state_after(state_1, keep_state), *_state_after(state_2, keep_state))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, state_1=None, state_2=None):
        x, other = ctx.saved_tensors
        block: Residual = ctx.block
        grad_input = torch.empty_like(x)
        for frames in reversed(list(split_frames(x.shape[2]))):
            part, tile = gradient[:, :, frames], x[:, :, frames]
            inner = _recompute_hidden(block, x, other, frames) if ctx.recompute else other[:, :, frames]
            grad_hidden, state_2 = block.second.backward(part, inner, state_2)
            grad_x, state_1 = block.first.backward(grad_hidden, tile, state_1)
            grad_x += block.shortcut_gradient(part, tile.shape)
            grad_input[:, :, frames] = grad_x
        # Clones, as in _state_after.
        states = (state_1.clone(), state_2.clone()) if ctx.has_state else (None, None)
        return grad_input, *states, None, None, None


def _recompute_hidden(block: Residual, x: Tensor, state: Tensor | None, frames: slice) -> Tensor:
    """What the first convolution of some frames gave."""
    if frames.start:
        state = block.first.state_of(x[:, :, frames.start - LOOK_BACK : frames.start])
    return block.first.forward(x[:, :, frames], state)[0]


class _HeadStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, state, layer, keep_state):
        ctx.layer, ctx.has_state = layer, state is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        parts, next_state = [], state
        for frames in split_frames(x.shape[2]):
            tile, next_state = layer.forward(x[:, :, frames], next_state)
            parts.append(tile)
        return (torch.cat(parts, 2), *_state_after(next_state, keep_state))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, next_state=None):
        (x,) = ctx.saved_tensors
        grad_input = torch.empty_like(x)
        for frames in reversed(list(split_frames(x.shape[2]))):
            grad_input[:, :, frames], next_state = ctx.layer.backward(
                gradient[:, :, frames], x[:, :, frames], next_state
            )
        return grad_input, next_state.clone() if ctx.has_state else None, None, None


class _UpsampledConv(torch.autograd.Function):
    """Each pixel repeated twice along both sides, then a convolution; saves nothing."""

    @staticmethod
    def forward(ctx, x, conv):
        ctx.conv, ctx.shape = conv, x.shape
        batch, _, frames, height, width = x.shape
        out = x.new_empty(batch, len(conv.weight), frames, 2 * height, 2 * width)
        for some in split_frames(frames):
            images = rearrange(x[:, :, some], "b c t h w -> (b t) c h w")
            # Not the module's own upsampling, which goes through float32 whatever the dtype.
            large = F.interpolate(images, scale_factor=2, mode="nearest-exact")
            enlarged = convolve(large, conv.weight, conv.bias)
            out[:, :, some] = rearrange(enlarged, "(b t) c h w -> b c t h w", b=batch)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        batch, channels, frames = ctx.shape[:3]
        grad_input = gradient.new_empty(ctx.shape)
        for some in split_frames(frames):
            images = rearrange(gradient[:, :, some], "b c t h w -> (b t) c h w")
            shape = torch.Size((len(images), channels, *images.shape[2:]))
            large = input_gradient(images, ctx.conv.weight, shape)
            small = F.avg_pool2d(large, 2, divisor_override=1)  # the sum of the four repeats
            grad_input[:, :, some] = rearrange(small, "(b t) c h w -> b c t h w", b=batch)
        return grad_input, None
