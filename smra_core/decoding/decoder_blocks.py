"""Blocks of WAN's video decoder, each a single autograd function that saves as little as it can.

A block takes `B C T H W` and the decoder state of its convolutions, and returns its output and the new state,
or no state (an empty tuple) if `keep_state` is False. A state in host memory is moved to the device by the
block that needs it. Inside, a block processes a few frames at a time, so that its intermediate results are
never in memory for the whole clip.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .frozen_layers import (
    LOOK_BACK,
    NormedConv,
    backpropagate_conv,
    convolve,
    convolve_frozen,
    normalize_frozen,
)
from .state import DecoderState, to_device_of

FRAMES_AT_ONCE = 4
"""Number of frames whose inner activations are in memory at the same time; at least LOOK_BACK."""


def split_frames(frames: int) -> Iterator[slice]:
    """Yield slices of a few frames each; the first is the longest, and none is shorter than LOOK_BACK unless
    it is the only one.
    """
    stops = list(range(frames, 0, -FRAMES_AT_ONCE))[::-1]
    if len(stops) > 1 and stops[0] < LOOK_BACK:
        del stops[0]
    starts = [0, *stops[:-1]]
    return map(slice, starts, stops)


class ConvIn(NamedTuple):
    """First convolutions, from latents to the width of the decoder."""

    post_quant_conv: nn.Module
    conv: nn.Module
    num_states = 1
    doubles_time = False

    def __call__(
        self, x: Tensor, state: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        padded = _prepend_state(convolve_frozen(x, self.post_quant_conv), state)
        return convolve_frozen(padded, self.conv), _take_state(padded, keep_state)


class Attention(NamedTuple):
    """Self-attention within each frame."""

    norm: nn.Module
    to_qkv: nn.Module
    proj: nn.Module
    num_states = 0
    doubles_time = False

    def __call__(
        self, x: Tensor, state: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        height, width = x.shape[-2:]
        frames = rearrange(normalize_frozen(x, self.norm), "b c t h w -> (b t) c h w")
        qkv = rearrange(convolve_frozen(frames, self.to_qkv), "n (q c) h w -> q n 1 (h w) c", q=3)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))
        attended = rearrange(attended, "n 1 (h w) c -> n c h w", h=height, w=width).contiguous()
        return x + rearrange(convolve_frozen(attended, self.proj), "(b t) c h w -> b c t h w", b=len(x)), ()


class Upsample3d(NamedTuple):
    """Upsampling to twice the height and width. If time is doubled too, a clip's first frame stays one."""

    time_conv: nn.Module | None
    conv: nn.Module

    @property
    def num_states(self) -> int:
        """Number of state tensors: 1 if time is doubled, else 0."""
        return int(self.doubles_time)

    @property
    def doubles_time(self) -> bool:
        """Whether the block makes two frames of one."""
        return self.time_conv is not None

    def __call__(
        self, x: Tensor, state: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        new_state = ()
        if self.time_conv is not None:
            single = 0 if state else 1  # a clip's first frame does not enter the time convolution
            padded = _prepend_state(x[:, :, single:], state)
            new_state = _take_state(padded, keep_state)
            if x.shape[2] > single:
                doubled = convolve_frozen(padded, self.time_conv)
                doubled = rearrange(doubled, "b (n c) t h w -> b c (t n) h w", n=2)
                x = torch.cat([x[:, :, :single], doubled], 2) if single else doubled
        return _UpsampledConv.apply(x, self.conv), new_state


@dataclass(frozen=True)
class Residual:
    """Two normed convolutions with a shortcut. Saves its input for backward, and with `recompute` nothing
    else.
    """

    first: NormedConv
    second: NormedConv
    shortcut: nn.Module | None
    """Convolution of kernel size 1 if the number of channels changes, otherwise None."""
    num_states = 2
    doubles_time = False

    def __call__(
        self, x: Tensor, state: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        out, *new_state = _ResidualStep.apply(x, *(state or (None, None)), self, recompute, keep_state)
        return out, tuple(new_state)

    def apply_shortcut(self, x: Tensor) -> Tensor:
        """Return the shortcut's output for frames x."""
        if self.shortcut is None:
            return x
        return convolve(x, self.shortcut.weight, self.shortcut.bias)

    def backpropagate_shortcut(self, grad_output: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of the shortcut with respect to its input of the given shape."""
        if self.shortcut is None:
            return grad_output
        return backpropagate_conv(grad_output, self.shortcut.weight, shape)


class Head(NamedTuple):
    """Last normed convolution, from the decoder's width to pixels. Saves its input for backward."""

    layer: NormedConv
    num_states = 1
    doubles_time = False

    def __call__(
        self, x: Tensor, state: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        out, *new_state = _HeadStep.apply(x, *(state or (None,)), self.layer, keep_state)
        return out, tuple(new_state)


class Unpatch(NamedTuple):
    """Rearrangement of channels into a square of pixels, whose side is `side`: the last layer of Wan 2.2's
    decoder.
    """

    side: int
    num_states = 0
    doubles_time = False

    def __call__(
        self, x: Tensor, state: DecoderState, recompute: bool, keep_state: bool
    ) -> tuple[Tensor, DecoderState]:
        # The channels of a color count along the width first: a column of the square, then the next.
        return rearrange(x, "b (c q p) t h w -> b c t (h p) (w q)", p=self.side, q=self.side), ()


Block = ConvIn | Attention | Upsample3d | Residual | Head | Unpatch


def _prepend_state(x: Tensor, state: DecoderState) -> Tensor:
    """Join x to the frames before it: the state's, or zeros at a clip's start."""
    before = to_device_of(state[0], x) if state else x.new_zeros(*x.shape[:2], LOOK_BACK, *x.shape[3:])
    return torch.cat([before, x], 2)


def _take_state(padded: Tensor, keep_state: bool) -> DecoderState:
    """Return the last frames as the new state, or no state."""
    # A clone, because a view would keep the whole tensor in memory.
    return (padded[:, :, -LOOK_BACK:].clone(),) if keep_state else ()


class _ResidualStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, state_before_1, state_before_2, block, recompute, keep_state):
        ctx.block, ctx.recompute, ctx.has_state = block, recompute, state_before_1 is not None
        ctx.set_materialize_grads(False)
        out = x.new_empty(len(x), len(block.second.conv.weight), *x.shape[2:])
        hidden = None if recompute else torch.empty_like(out)
        state_1, state_2 = state_before_1, state_before_2
        for frames in split_frames(x.shape[2]):
            hidden_chunk, state_1 = block.first.forward(x[:, :, frames], state_1)
            if hidden is not None:
                hidden[:, :, frames] = hidden_chunk
            out_chunk, state_2 = block.second.forward(hidden_chunk, state_2)
            out_chunk += block.apply_shortcut(x[:, :, frames])
            out[:, :, frames] = out_chunk
        ctx.save_for_backward(x, state_before_1 if recompute else hidden)
        return (out, *_take_state(state_1, keep_state), *_take_state(state_2, keep_state))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, grad_state_1=None, grad_state_2=None):
        x, state_or_hidden = ctx.saved_tensors
        block: Residual = ctx.block
        grad_input = torch.empty_like(x)
        for frames in reversed(list(split_frames(x.shape[2]))):
            grad_chunk, x_chunk = grad_output[:, :, frames], x[:, :, frames]
            if ctx.recompute:
                hidden = _recompute_hidden(block, x, state_or_hidden, frames)
            else:
                hidden = state_or_hidden[:, :, frames]
            grad_hidden, grad_state_2 = block.second.backward(grad_chunk, hidden, grad_state_2)
            grad_x, grad_state_1 = block.first.backward(grad_hidden, x_chunk, grad_state_1)
            grad_x += block.backpropagate_shortcut(grad_chunk, x_chunk.shape)
            grad_input[:, :, frames] = grad_x
        # Clones, as in _take_state.
        grad_states = (grad_state_1.clone(), grad_state_2.clone()) if ctx.has_state else (None, None)
        return grad_input, *grad_states, None, None, None


def _recompute_hidden(block: Residual, x: Tensor, state: Tensor | None, frames: slice) -> Tensor:
    """Return the output of the first convolution for some frames."""
    if frames.start:
        state = block.first.compute_state(x[:, :, frames.start - LOOK_BACK : frames.start])
    return block.first.forward(x[:, :, frames], state)[0]


class _HeadStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, state, layer, keep_state):
        ctx.layer, ctx.has_state = layer, state is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        chunks, new_state = [], state
        for frames in split_frames(x.shape[2]):
            chunk, new_state = layer.forward(x[:, :, frames], new_state)
            chunks.append(chunk)
        return (torch.cat(chunks, 2), *_take_state(new_state, keep_state))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, grad_state=None):
        (x,) = ctx.saved_tensors
        grad_input = torch.empty_like(x)
        for frames in reversed(list(split_frames(x.shape[2]))):
            grad_input[:, :, frames], grad_state = ctx.layer.backward(
                grad_output[:, :, frames], x[:, :, frames], grad_state
            )
        return grad_input, grad_state.clone() if ctx.has_state else None, None, None


class _UpsampledConv(torch.autograd.Function):
    """Nearest-neighbor upsampling to twice the height and width, then a convolution; saves nothing."""

    @staticmethod
    def forward(ctx, x, conv):
        ctx.conv, ctx.shape = conv, x.shape
        batch, _, frames, height, width = x.shape
        out = x.new_empty(batch, len(conv.weight), frames, 2 * height, 2 * width)
        for chunk in split_frames(frames):
            images = rearrange(x[:, :, chunk], "b c t h w -> (b t) c h w")
            # Not by the module's own upsampling, which converts to float32 whatever the dtype.
            large = F.interpolate(images, scale_factor=2, mode="nearest-exact")
            enlarged = convolve(large, conv.weight, conv.bias)
            out[:, :, chunk] = rearrange(enlarged, "(b t) c h w -> b c t h w", b=batch)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        batch, channels, frames = ctx.shape[:3]
        grad_input = grad_output.new_empty(ctx.shape)
        for chunk in split_frames(frames):
            images = rearrange(grad_output[:, :, chunk], "b c t h w -> (b t) c h w")
            shape = torch.Size((len(images), channels, *images.shape[2:]))
            large = backpropagate_conv(images, ctx.conv.weight, shape)
            small = F.avg_pool2d(large, 2, divisor_override=1)  # the sum over the four copies of a pixel
            grad_input[:, :, chunk] = rearrange(small, "(b t) c h w -> b c t h w", b=batch)
        return grad_input, None
