"""Frozen layers of the host that autograd may pass through without keeping a weight.

The host casts, dequantizes or streams a weight into a buffer when it is used, and uses the buffer again for
the next layer. Plain autograd keeps a reference to that buffer, so that the backward pass multiplies with
another layer's weight, without an error. Here the weight is asked for again in backward.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .versions import base_weight, is_quantized


class FrozenLinear(torch.autograd.Function):
    """`y = x W' + b`; keeps neither x nor W, as the gradient of x needs W alone."""

    @staticmethod
    def forward(ctx, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        with base_weight(module, x) as (weight, bias):
            return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        with base_weight(ctx.module, gradient) as (weight, _):
            return gradient @ weight, None


class Recomputed(torch.autograd.Function):
    """Any frozen layer of one input: it runs again in backward, weight, buffer and all."""

    @staticmethod
    def forward(ctx, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            return torch.autograd.grad(ctx.run(again), again, gradient)[0], None


def frozen_forward(module: nn.Module) -> Callable[..., Tensor]:
    """The module's forward for training: frozen, without holding on to its weight.

    A forward that somebody else put there (a LoRA that another node runs beside the weights) is kept and
    differentiated as it is.
    """
    forward = module.forward
    if not _is_own(module):
        return forward
    linear = _is_plain_product(module)

    def frozen(x: Tensor, *args, **kwargs) -> Tensor:
        # Also where x needs no gradient: the host's own kernels would round x to the weight's few bits.
        if not torch.is_grad_enabled():
            return forward(x, *args, **kwargs)
        return FrozenLinear.apply(x, module) if linear else Recomputed.apply(x, forward)

    return frozen


def _is_plain_product(module: nn.Module) -> bool:
    """Whether the module is `x W' + b` with a weight that the host itself can cast.

    Others (GGUF files, formats that scale the input, too) run as their owner runs them.
    """
    known = type(module.weight) is nn.Parameter or is_quantized(module.weight)
    return known and hasattr(module, "in_features") and getattr(module, "pre_quant_scale", None) is None


def _is_own(module: nn.Module) -> bool:
    # The host's own unloading leaves the class's method behind as an attribute of the instance.
    placed = module.__dict__.get("forward")
    return placed is None or getattr(placed, "__func__", None) is type(module).forward
