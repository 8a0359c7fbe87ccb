"""Normal tensors over the memory of inference tensors.

ComfyUI runs every prompt in inference mode, and what it makes there (weights, latents, conditioning) can
never take part in autograd, not even after the mode is left. A new tensor over the same storage can, and
costs no memory; a copy of a model would cost its size again.
"""

import torch
from torch import Tensor, nn


def as_normal_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor, or one over its memory that autograd accepts. Call outside of inference mode."""
    if not tensor.is_inference():
        return tensor
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def make_normal(module: nn.Module) -> int:
    """Replace all inference parameters and buffers of a module by normal ones, and return their number.

    They stay in the module afterwards: sampling, patching and unloading work with them as before.
    """
    exchanged = 0
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            # Quantized weights are subclasses without a storage of their own; dequantized, they are normal.
            if type(parameter) is nn.Parameter and parameter.is_inference():
                part._parameters[name] = nn.Parameter(as_normal_tensor(parameter), requires_grad=False)
                exchanged += 1
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = as_normal_tensor(buffer)
                exchanged += 1
    return exchanged
