"""Linears of a frozen model that gradients pass through, alone or with a LoRA, at the least cost.

Autograd would keep each weight for the backward pass, compute a weight's change as a tensor of its own, and
add it in further passes over the output. Here a weight is asked for whenever it is needed, so that it may be
cast, dequantized or streamed into a buffer that the next layer uses again, and the LoRA's product is added
within the multiplication.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..wan.recompute import is_recomputing
from ..wan.stored_form import restore_values

Load = Callable[[Tensor], AbstractContextManager[tuple[Tensor, Tensor | None]]]
"""Gives weight `out in` and bias `out` inside of a with block, on the device and in the dtype of a tensor."""


class FrozenForward:
    """The `forward` of a frozen linear in training: `y = x W' + b`, of which nothing is kept for backward."""

    def __init__(self, out_features: int, load: Load, plain: Callable[[Tensor], Tensor], ends_block: bool):
        """Take the linear's width, its weight, and the forward that it has where nothing is trained.

        `ends_block` says that nothing in the block's backward pass needs the value of the output: it is not
        computed again where the block is recomputed.
        """
        self.out_features, self.load, self.plain, self.ends_block = out_features, load, plain, ends_block

    def __call__(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Return the output `... out` for an input `... in`."""
        if not torch.is_grad_enabled():
            return self.plain(x, *args, **kwargs)
        return FrozenLinear.apply(x, self)

    def with_lora(self, x: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
        """Return `x W' + b + factor (x A') B'`, with gradients for x, A `rank in` and B `out rank`."""
        return LoraLinear.apply(x, a, b, factor, self)

    def is_output_needed(self) -> bool:
        """Return whether the output's value is used, which it is not where a block's end is recomputed."""
        return not (self.ends_block and is_recomputing())

    def make_placeholder(self, x: Tensor) -> Tensor:
        """Return NaN in the output's shape: it takes no memory, and shows wherever it is used after all."""
        return x.new_full((), torch.nan).expand(*x.shape[:-1], self.out_features)

    def multiply(self, x: Tensor) -> Tensor:
        """Return the output `... out` for an input `... in`."""
        with self.load(x) as (weight, bias):
            return F.linear(x, weight, bias)

    def multiply_back(self, gradient: Tensor) -> Tensor:
        """Return the gradient `... in` of the input for that of the output."""
        with self.load(gradient) as (weight, _):
            return gradient @ weight


def freeze_plain_linear(module: nn.Linear, ends_block: bool = False) -> FrozenForward:
    """Return the forward in training of a linear of torch, whose weight stays where it is."""

    def load(like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        return nullcontext((module.weight, module.bias))

    return FrozenForward(module.out_features, load, module.forward, ends_block)


def freeze_stored_linear(
    module: nn.Linear,
    take: Callable[[], Tensor],
    scale: Tensor | float | None,
    group: int = 0,
    ends_block: bool = False,
) -> FrozenForward:
    """Return the forward in training of a linear whose weight is in the form of its file, or elsewhere.

    `take` returns the weight's values on the device of the input, which `scale` and `group` bring back (see
    wan.stored_form.restore_values); the linear's own weight is not used.
    """

    def load(like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        return nullcontext((restore_values(take(), scale, like.dtype, group), module.bias))

    frozen = FrozenForward(module.out_features, load, module.forward, ends_block)
    frozen.plain = frozen.multiply
    return frozen


class FrozenLinear(torch.autograd.Function):
    """A frozen linear that keeps neither x nor W, because the gradient of x needs W alone."""

    @staticmethod
    def forward(ctx, x: Tensor, frozen: FrozenForward) -> Tensor:
        ctx.frozen = frozen
        return frozen.multiply(x) if frozen.is_output_needed() else frozen.make_placeholder(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.frozen.multiply_back(gradient), None


class LoraLinear(torch.autograd.Function):
    """A frozen linear and a LoRA, of which the input, its rank-r image and the cast factors are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, b: Tensor, factor: float, frozen: FrozenForward) -> Tensor:
        # Strength and scale multiply the rank-r image, which is far smaller than the output. The factors are
        # cast, not x: a float32 copy of x per linear would be kept for backward.
        ctx.frozen, ctx.factor, ctx.dtype = frozen, factor, a.dtype
        a, b = a.to(x.dtype), b.to(x.dtype)
        image = F.linear(x, a)
        if factor != 1:
            image *= factor
        ctx.save_for_backward(x, image, a, b)
        if not frozen.is_output_needed():
            return frozen.make_placeholder(x)
        y = frozen.multiply(x).contiguous()
        rows = y.view(-1, y.shape[-1])
        torch.addmm(rows, image.view(-1, image.shape[-1]), b.T, out=rows)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, image, a, b = ctx.saved_tensors
        needs_x, needs_a, needs_b, *_ = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        grad_image = rows @ b
        if ctx.factor != 1:
            grad_image *= ctx.factor
        grad_x = _backpropagate_input(ctx.frozen, rows, grad_image, a).view(x.shape) if needs_x else None
        grad_a = (grad_image.T @ x.reshape(-1, x.shape[-1])).to(ctx.dtype) if needs_a else None
        grad_b = (rows.T @ image.view(-1, image.shape[-1])).to(ctx.dtype) if needs_b else None
        return grad_x, grad_a, grad_b, None, None


def _backpropagate_input(frozen: FrozenForward, rows: Tensor, grad_image: Tensor, a: Tensor) -> Tensor:
    """Return the gradient `N in` of the input, from those of the output `N out` and of the image `N rank`."""
    grad_x = frozen.multiply_back(rows)
    return torch.addmm(grad_x, grad_image, a, out=grad_x)
