"""Layers with frozen weights whose backward pass needs almost nothing saved.

A convolution's gradient with respect to its input does not depend on that input, yet torch saves the input
for the gradient of the weights; norm and activation save several tensors where one is enough. Here a layer
saves the tensor that enters its norm, or nothing. Volumes are `B C T H W`. A causal convolution of kernel
size 3 in time also sees the two frames before: its state `B C 2 H W`, after norm and activation.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .fast_conv3d import compute_channel_length, convolve_3d, is_slow_as_conv3d
from .state import to_device_of

LOOK_BACK = 2
"""Number of frames before its own that a causal convolution of kernel size 3 in time sees."""
SMALLEST_LENGTH = 1e-12
"""Length below which a vector over channels counts as zero, as in torch's normalize."""


def convolve_frozen(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply a convolution of stride 1 that keeps height and width and does not pad time; save nothing for
    backward.

    `conv` has `weight` and `bias`, for images `N C H W` or volumes, and gets no gradient.
    """
    return _FrozenConv.apply(x, conv.weight, conv.bias)


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        # Not by save_for_backward, because weights loaded in inference mode could not be saved.
        ctx.weight, ctx.shape = weight, x.shape
        return convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        return backpropagate_conv(grad_output, ctx.weight, ctx.shape), None, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a convolution of stride 1 that keeps height and width and does not pad time."""
    if weight.ndim == 4:
        return F.conv2d(x, weight, bias, padding=_compute_padding(weight))
    return convolve_3d(x, weight, bias, _compute_padding(weight))


def backpropagate_conv(grad_output: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient of `convolve` with respect to its input of the given shape."""
    borders, dims = _compute_padding(weight), weight.ndim - 2
    if dims == 3 and is_slow_as_conv3d(grad_output, weight):
        overlap = weight.shape[2] - 1
        mirrored = weight.transpose(0, 1).flip(2, 3, 4)
        return convolve_3d(F.pad(grad_output, (0, 0, 0, 0, overlap, overlap)), mirrored, None, borders)
    padding = list(borders) if dims == 2 else [0, *borders]
    stand_in = grad_output.new_empty(1).expand(shape)  # only the shape of the input is read
    return torch.ops.aten.convolution_backward(
        grad_output, stand_in, weight, None, [1] * dims, padding, [1] * dims, False, [0] * dims, 1,
        (True, False, False),
    )[0]  # fmt: skip


def _compute_padding(weight: Tensor) -> tuple[int, int]:
    return weight.shape[-2] // 2, weight.shape[-1] // 2


def normalize_frozen(x: Tensor, norm: nn.Module, activate: bool = False) -> Tensor:
    """Apply an RMS norm over the channels of `B C ...`, then SiLU if `activate`; save only x for backward.

    `norm` has `gamma`, which gets no gradient.
    """
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
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return backpropagate_norm(grad_output, x, ctx.gamma, ctx.activate), None, None


def normalize_rms(x: Tensor, gamma: Tensor, out: Tensor | None = None) -> Tensor:
    """Normalize by the root mean square over channels and multiply by gamma; write into `out` if given."""
    y = torch.mul(x, _compute_inverse_rms(x), out=out)
    return y.mul_(_reshape_per_channel(gamma, x))


def backpropagate_norm(grad_output: Tensor, x: Tensor, gamma: Tensor, activated: bool) -> Tensor:
    """Return the gradient of the norm, and of SiLU if `activated`, with respect to x."""
    inverse = _compute_inverse_rms(x)
    scale = _reshape_per_channel(gamma, x)
    if activated:
        grad_norm = torch.ops.aten.silu_backward(grad_output, torch.mul(x, inverse).mul_(scale))
        grad_input = grad_norm.mul_(scale)
    else:
        grad_input = grad_output * scale
    # The norm's output does not change when x is scaled, so the part of the gradient along x is removed.
    along = (grad_input * x).sum(1, keepdim=True) * (inverse.square() / x.shape[1])
    return grad_input.addcmul_(x, along, value=-1).mul_(inverse)


def _compute_inverse_rms(x: Tensor) -> Tensor:
    """Return one over the root mean square over channels, `B 1 ...`; off the CPU computed in float32 at
    least.
    """
    length = compute_channel_length(x).clamp_(min=SMALLEST_LENGTH)
    return (x.shape[1] ** 0.5 / length).to(x.dtype)


def _reshape_per_channel(gamma: Tensor, x: Tensor) -> Tensor:
    return gamma.to(x).view(-1, *[1] * (x.ndim - 2))


class NormedConv(NamedTuple):
    """Norm, SiLU and causal convolution, applied to a few frames at a time."""

    norm: nn.Module
    conv: nn.Module

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the output and the new state, which is a view. State None stands for zeros."""
        padded = x.new_empty(*x.shape[:2], LOOK_BACK + x.shape[2], *x.shape[3:])
        if state is None:
            padded[:, :, :LOOK_BACK] = 0
        else:
            padded[:, :, :LOOK_BACK] = to_device_of(state, x)
        # Written to where the convolution reads it, which saves a copy that joins it to the state.
        F.silu(normalize_rms(x, self.norm.gamma, out=padded[:, :, LOOK_BACK:]), inplace=True)
        return convolve(padded, self.conv.weight, self.conv.bias), padded[:, :, -LOOK_BACK:]

    def compute_state(self, x: Tensor) -> Tensor:
        """Return the state after frames `B C 2 H W`: these frames after norm and activation."""
        return F.silu(normalize_rms(x, self.norm.gamma), inplace=True)

    def backward(
        self, grad_output: Tensor, x: Tensor, grad_new_state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of the state before it, from those of the output and of the new
        state.
        """
        shape = torch.Size((*x.shape[:2], LOOK_BACK + x.shape[2], *x.shape[3:]))
        grad_padded = backpropagate_conv(grad_output, self.conv.weight, shape)
        if grad_new_state is not None:
            grad_padded[:, :, -LOOK_BACK:] += grad_new_state
        grad_x = backpropagate_norm(grad_padded[:, :, LOOK_BACK:], x, self.norm.gamma, activated=True)
        return grad_x, grad_padded[:, :, :LOOK_BACK]
