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

from .frozen_layers import (  # fmt: skip
    LOOK_BACK,
    NormedConv,
    convolved,
    fetched,
    frozen_conv,
    frozen_norm,
    input_gradient,
)

FRAMES_AT_ONCE = 4
"""Frames whose inner activations are alive together; at least LOOK_BACK."""

Past = tuple[Tensor, ...]
"""For each causal convolution, in order, the last two frames that entered it: `B C 2 H W`."""


def tiles(frames: int) -> Iterator[slice]:
    """Pieces of a few frames each, the first the longest, none shorter than the look back but a lone one."""
    stops = list(range(frames, 0, -FRAMES_AT_ONCE))[::-1]
    if len(stops) > 1 and stops[0] < LOOK_BACK:
        del stops[0]
    starts = [0, *stops[:-1]]
    return map(slice, starts, stops)


class Entry(NamedTuple):
    """From latents to the width of the decoder."""

    unquantised: nn.Module
    conv: nn.Module
    carried = 1

    def __call__(self, x: Tensor, before: Past, recompute: bool, leaves: bool) -> tuple[Tensor, Past]:
        seen = _after_past(frozen_conv(x, self.unquantised), before)
        return frozen_conv(seen, self.conv), _left_by(seen, leaves)


class Attention(NamedTuple):
    """Every frame attends to itself."""

    norm: nn.Module
    to_qkv: nn.Module
    proj: nn.Module
    carried = 0

    def __call__(self, x: Tensor, before: Past, recompute: bool, leaves: bool) -> tuple[Tensor, Past]:
        height, width = x.shape[-2:]
        frames = rearrange(frozen_norm(x, self.norm), "b c t h w -> (b t) c h w")
        qkv = rearrange(frozen_conv(frames, self.to_qkv), "n (q c) h w -> q n 1 (h w) c", q=3)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))
        attended = rearrange(attended, "n 1 (h w) c -> n c h w", h=height, w=width).contiguous()
        return x + rearrange(frozen_conv(attended, self.proj), "(b t) c h w -> b c t h w", b=len(x)), ()


class Upsampling(NamedTuple):
    """Twice the size; where time doubles too, a clip's first frame stays alone."""

    in_time: nn.Module | None
    conv: nn.Module

    @property
    def carried(self) -> int:
        return int(self.in_time is not None)

    def __call__(self, x: Tensor, before: Past, recompute: bool, leaves: bool) -> tuple[Tensor, Past]:
        after = ()
        if self.in_time is not None:
            lone = 0 if before else 1  # a clip's first frame does not enter the time convolution
            seen = _after_past(x[:, :, lone:], before)
            after = _left_by(seen, leaves)
            if x.shape[2] > lone:
                doubled = frozen_conv(seen, self.in_time)
                doubled = rearrange(doubled, "b (n c) t h w -> b c (t n) h w", n=2)
                x = torch.cat([x[:, :, :lone], doubled], 2) if lone else doubled
        return _Enlarged.apply(x, self.conv), after


@dataclass(frozen=True)
class Residual:
    """Two normed convolutions beside a shortcut. Saves its input, and with `recompute` nothing else."""

    first: NormedConv
    second: NormedConv
    shortcut: nn.Module | None
    """A convolution of one tap, where the width changes."""
    carried = 2

    def __call__(self, x: Tensor, before: Past, recompute: bool, leaves: bool) -> tuple[Tensor, Past]:
        out, *after = _ResidualStep.apply(x, *(before or (None, None)), self, recompute, leaves)
        return out, tuple(after)

    def beside(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return x
        return convolved(x, self.shortcut.weight, self.shortcut.bias)

    def beside_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return gradient if self.shortcut is None else input_gradient(gradient, self.shortcut.weight, shape)


class Head(NamedTuple):
    """From the decoder's width to pixels. Saves its input."""

    layer: NormedConv
    carried = 1

    def __call__(self, x: Tensor, before: Past, recompute: bool, leaves: bool) -> tuple[Tensor, Past]:
        out, *after = _HeadStep.apply(x, *(before or (None,)), self.layer, leaves)
        return out, tuple(after)


Block = Entry | Attention | Upsampling | Residual | Head


def _after_past(x: Tensor, before: Past) -> Tensor:
    past = fetched(before[0], x) if before else x.new_zeros(*x.shape[:2], LOOK_BACK, *x.shape[3:])
    return torch.cat([past, x], 2)


def _left_by(seen: Tensor, leaves: bool) -> Past:
    # A clone, because a view would keep all that was seen alive.
    return (seen[:, :, -LOOK_BACK:].clone(),) if leaves else ()


class _ResidualStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, past_1, past_2, block, recompute, leaves):
        ctx.block, ctx.recompute, ctx.has_past = block, recompute, past_1 is not None
        ctx.set_materialize_grads(False)
        out = x.new_empty(len(x), len(block.second.conv.weight), *x.shape[2:])
        hidden = None if recompute else torch.empty_like(out)
        left_1, left_2 = past_1, past_2
        for frames in tiles(x.shape[2]):
            inner, left_1 = block.first.forward(x[:, :, frames], left_1)
            if hidden is not None:
                hidden[:, :, frames] = inner
            tile, left_2 = block.second.forward(inner, left_2)
            tile += block.beside(x[:, :, frames])
            out[:, :, frames] = tile
        ctx.save_for_backward(x, past_1 if recompute else hidden)
        return (out, *_left_by(left_1, leaves), *_left_by(left_2, leaves))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, left_1=None, left_2=None):
        x, other = ctx.saved_tensors
        block: Residual = ctx.block
        pull = torch.empty_like(x)
        for frames in reversed(list(tiles(x.shape[2]))):
            part, tile = gradient[:, :, frames], x[:, :, frames]
            inner = _inner_again(block, x, other, frames) if ctx.recompute else other[:, :, frames]
            inner_pull, left_2 = block.second.backward(part, inner, left_2)
            own, left_1 = block.first.backward(inner_pull, tile, left_1)
            own += block.beside_gradient(part, tile.shape)
            pull[:, :, frames] = own
        # Clones, as in _left_by.
        pasts = (left_1.clone(), left_2.clone()) if ctx.has_past else (None, None)
        return pull, *pasts, None, None, None


def _inner_again(block: Residual, x: Tensor, past: Tensor | None, frames: slice) -> Tensor:
    """What the first convolution of some frames gave."""
    if frames.start:
        past = block.first.past_of(x[:, :, frames.start - LOOK_BACK : frames.start])
    return block.first.forward(x[:, :, frames], past)[0]


class _HeadStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, past, layer, leaves):
        ctx.layer, ctx.has_past = layer, past is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        parts, left = [], past
        for frames in tiles(x.shape[2]):
            tile, left = layer.forward(x[:, :, frames], left)
            parts.append(tile)
        return (torch.cat(parts, 2), *_left_by(left, leaves))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, left=None):
        (x,) = ctx.saved_tensors
        pull = torch.empty_like(x)
        for frames in reversed(list(tiles(x.shape[2]))):
            pull[:, :, frames], left = ctx.layer.backward(gradient[:, :, frames], x[:, :, frames], left)
        return pull, left.clone() if ctx.has_past else None, None, None


class _Enlarged(torch.autograd.Function):
    """Each pixel repeated twice along both sides, then a convolution; saves nothing."""

    @staticmethod
    def forward(ctx, x, conv):
        ctx.conv, ctx.shape = conv, x.shape
        batch, _, frames, height, width = x.shape
        out = x.new_empty(batch, len(conv.weight), frames, 2 * height, 2 * width)
        for some in tiles(frames):
            images = rearrange(x[:, :, some], "b c t h w -> (b t) c h w")
            # Not the module's own upsampling, which goes through float32 whatever the dtype.
            large = F.interpolate(images, scale_factor=2, mode="nearest-exact")
            enlarged = convolved(large, conv.weight, conv.bias)
            out[:, :, some] = rearrange(enlarged, "(b t) c h w -> b c t h w", b=batch)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        batch, channels, frames = ctx.shape[:3]
        pull = gradient.new_empty(ctx.shape)
        for some in tiles(frames):
            images = rearrange(gradient[:, :, some], "b c t h w -> (b t) c h w")
            shape = torch.Size((len(images), channels, *images.shape[2:]))
            large = input_gradient(images, ctx.conv.weight, shape)
            small = F.avg_pool2d(large, 2, divisor_override=1)  # the sum of the four repeats
            pull[:, :, some] = rearrange(small, "(b t) c h w -> b c t h w", b=batch)
        return pull, None
