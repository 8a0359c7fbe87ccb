"""Frozen layers of ComfyUI that gradients can pass through without a weight being kept.

ComfyUI casts, dequantizes or streams a weight into a buffer when it is used, and uses the buffer again for
the next layer. Plain autograd keeps a reference to that buffer, so that the backward pass multiplies with
another layer's weight, without an error. Here the weight is loaded again in backward.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...smra_core.lora.frozen_linear import FrozenForward
from .offloaded_layers import OffloadedLayers
from .versions import is_quantized


class Recomputed(torch.autograd.Function):
    """Any frozen layer of one input; it runs a second time in backward and so loads its weight again."""

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


def freeze_forward(
    module: nn.Module, offloaded: OffloadedLayers, ends_block: bool = False
) -> Callable[..., Tensor]:
    """Return the module's forward for training: frozen, and without keeping the weight.

    A forward that another node has put there (a LoRA that runs beside the weights) is kept and
    differentiated as it is. `ends_block` is for a block's last linear (see FrozenForward).
    """
    if not has_own_forward(module):
        return module.forward
    forward = offloaded.wrap(module, module.forward)
    if _is_plain_product(module):
        # Also where x needs no gradient: ComfyUI's own kernels would round x to the few bits of the weight.
        return FrozenForward(module.out_features, partial(offloaded.load, module), forward, ends_block)

    def run_again(x: Tensor, *args, **kwargs) -> Tensor:
        return Recomputed.apply(x, forward) if torch.is_grad_enabled() else forward(x, *args, **kwargs)

    return run_again


def freeze_on_gradient(module: nn.Module, offloaded: OffloadedLayers) -> Callable[..., Tensor]:
    """Return a forward that is frozen for an input that needs a gradient, and the module's own for others."""
    forward, frozen = module.forward, freeze_forward(module, offloaded)

    def run(x: Tensor, *args, **kwargs) -> Tensor:
        return frozen(x, *args, **kwargs) if x.requires_grad else forward(x, *args, **kwargs)

    return run


def _is_plain_product(module: nn.Module) -> bool:
    """Whether the module is `x W' + b` with a weight that ComfyUI itself can cast.

    Others (GGUF files, and formats that also scale the input) run as their own code runs them.
    """
    known = type(module.weight) is nn.Parameter or is_quantized(module.weight)
    return known and hasattr(module, "in_features") and getattr(module, "pre_quant_scale", None) is None


def has_own_forward(module: nn.Module) -> bool:
    """Whether no other node has replaced a module's forward."""
    # ComfyUI's own unloading leaves the class's method as an attribute of the instance.
    attribute = module.__dict__.get("forward")
    return attribute is None or getattr(attribute, "__func__", None) is type(module).forward
