"""Layers with frozen weights whose backward pass needs almost nothing saved.

A convolution's gradient with respect to its input does not depend on that input, yet torch keeps it for the
gradient of the weights; norm and activation keep several tensors where one is enough. Here a layer keeps the
tensor that enters its norm, or nothing. Volumes are `B C T H W`; a causal convolution of three time taps also
sees the two frames before, its past `B C 2 H W`, already normed and activated.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .fast_conv3d import channel_length, conv3d, is_slow_as_conv3d
from .state import to_device_of

LOOK_BACK = 2
"""Frames before its own that a causal convolution of three time taps sees."""
SMALLEST_LENGTH = 1e-12
"""Below this a vector over channels counts as zero, as in torch's normalize."""


def frozen_conv(x: Tensor, conv: nn.Module) -> Tensor:
    """Convolution of stride 1 that keeps height and width and does not pad time; nothing is saved.

    `conv` holds `weight` and `bias`, for images `N C H W` or volumes, and gets no gradient.
    """
    return _FrozenConv.apply(x, conv.weight, conv.bias)


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        # Not save_for_backward: weights loaded in inference mode could not be saved.
        ctx.weight, ctx.shape = weight, x.shape
        return convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return input_gradient(gradient, ctx.weight, ctx.shape), None, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.ndim == 4:
        return F.conv2d(x, weight, bias, padding=_borders(weight))
    return conv3d(x, weight, bias, _borders(weight))


def input_gradient(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Of `convolve`, with respect to its input of the given shape."""
    borders, dims = _borders(weight), weight.ndim - 2
    if dims == 3 and is_slow_as_conv3d(gradient, weight):
        taps = weight.shape[2]
        mirrored = weight.transpose(0, 1).flip(2, 3, 4)
        return conv3d(F.pad(gradient, (0, 0, 0, 0, taps - 1, taps - 1)), mirrored, None, borders)
    padding = list(borders) if dims == 2 else [0, *borders]
    stand_in = gradient.new_empty(1).expand(shape)  # of the input only the shape is read
    return torch.ops.aten.convolution_backward(
        gradient, stand_in, weight, None, [1] * dims, padding, [1] * dims, False, [0] * dims, 1,
        (True, False, False),
    )[0]  # fmt: skip


def _borders(weight: Tensor) -> tuple[int, int]:
    return weight.shape[-2] // 2, weight.shape[-1] // 2


def frozen_norm(x: Tensor, norm: nn.Module, activate: bool = False) -> Tensor:
    """RMS norm over the channels of `B C ...`, then SiLU if asked; saves x alone. `norm` holds `gamma`."""
    return _FrozenNorm.apply(x, norm.gamma, activate)


class _FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, activate):
        ctx.save_for_backward(x)
        ctx.gamma, ctx.activate = gamma, activate
        y = normalize_rms(x, gamma)
        return F.silu(y, inplace=True) if activate else y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return norm_gradient(gradient, x, ctx.gamma, ctx.activate), None, None


def normalize_rms(x: Tensor, gamma: Tensor, out: Tensor | None = None) -> Tensor:
    """RMS norm over channels times gamma, into `out` if given."""
    y = torch.mul(x, _inverse_rms(x), out=out)
    return y.mul_(_per_channel(gamma, x))


def norm_gradient(gradient: Tensor, x: Tensor, gamma: Tensor, activated: bool) -> Tensor:
    """Of norm, and SiLU if activated, with respect to x."""
    inverse = _inverse_rms(x)
    scale = _per_channel(gamma, x)
    if activated:
        gradient = torch.ops.aten.silu_backward(gradient, torch.mul(x, inverse).mul_(scale))
        grad_input = gradient.mul_(scale)
    else:
        grad_input = gradient * scale
    # The norm's output does not change along x itself, so that part of the gradient is taken out.
    along = (grad_input * x).sum(1, keepdim=True) * (inverse.square() / x.shape[1])
    return grad_input.addcmul_(x, along, value=-1).mul_(inverse)


def _inverse_rms(x: Tensor) -> Tensor:
    """One over the root mean square over channels, `B 1 ...`; computed in float32 at least."""
    length = channel_length(x).clamp_(min=SMALLEST_LENGTH)
    return (x.shape[1] ** 0.5 / length).to(x.dtype)


def _per_channel(gamma: Tensor, x: Tensor) -> Tensor:
    return gamma.to(x).view(-1, *[1] * (x.ndim - 2))


class NormedConv(NamedTuple):
    """Norm, SiLU and causal convolution, applied to some frames at a time."""

    norm: nn.Module
    conv: nn.Module

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Its output, and the past that it leaves (a view); past None is black before a clip."""
        seen = x.new_empty(*x.shape[:2], LOOK_BACK + x.shape[2], *x.shape[3:])
        if state is None:
            seen[:, :, :LOOK_BACK] = 0
        else:
            seen[:, :, :LOOK_BACK] = to_device_of(state, x)
        # Written where the convolution reads it, not joined to the past by a copy.
        F.silu(normalize_rms(x, self.norm.gamma, out=seen[:, :, LOOK_BACK:]), inplace=True)
        return convolve(seen, self.conv.weight, self.conv.bias), seen[:, :, -LOOK_BACK:]

    def state_of(self, x: Tensor) -> Tensor:
        """What frames `B C 2 H W` before x leave to the convolution."""
        return F.silu(normalize_rms(x, self.norm.gamma), inplace=True)

    def backward(self, gradient: Tensor, x: Tensor, next_state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients of x and of its past, from those of its output and of the past that it left."""
        shape = torch.Size((*x.shape[:2], LOOK_BACK + x.shape[2], *x.shape[3:]))
        seen = input_gradient(gradient, self.conv.weight, shape)
        if next_state is not None:
            seen[:, :, -LOOK_BACK:] += next_state
        grad_x = norm_gradient(seen[:, :, LOOK_BACK:], x, self.norm.gamma, activated=True)
        return grad_x, seen[:, :, :LOOK_BACK]
