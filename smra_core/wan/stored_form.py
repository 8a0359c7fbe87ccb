"""Forms in which files hold the weights of linears, and the way back to the values that they stand for.

- fp8: values of 8 bits times a scale, one for the weight or one for each output.
- INT8 of ComfyUI (`int8_tensorwise`): whole numbers times a scale, as above. With `convrot` the weight was
  rotated before it was rounded, so that no single input has far larger values than others: its inputs, in
  groups, were multiplied by a Hadamard matrix.
"""

import math
from functools import cache

import torch
from torch import Tensor

_SIZES_OF_ROTATIONS = tuple(4**power for power in range(1, 6))


def restore_values(
    values: Tensor, scale: Tensor | float | None, dtype: torch.dtype, group: int = 0
) -> Tensor:
    """Return a weight `out in` in `dtype`, given its values in the form of the file, multiplied by its scale
    if it has one, and rotated back if inputs were rotated in groups of this size.

    Both must be on one device; without a scale the result may be `values` itself. For values of 8 bits a
    number as the scale gives the same bits as a tensor of it, with a third of the traffic.
    """
    if scale is None:
        return values.to(dtype)
    if group:
        return _rotate_inputs(values.float() * scale, group).to(dtype)
    if isinstance(scale, float):  # 16 bits hold all values of 8 bits, and torch multiplies them in float32
        return values.to(dtype).mul_(scale)
    # 8 bits are copied by float(), so that the product may be in place.
    return values.float().mul_(scale).to(dtype)


def can_rotate(inputs: int, group: int) -> bool:
    """Return whether so many inputs can have been rotated in groups of this size."""
    return group in _SIZES_OF_ROTATIONS and inputs % group == 0


def _rotate_inputs(weight: Tensor, group: int) -> Tensor:
    """Return a weight with its inputs rotated in groups; rotated twice it is as before."""
    return (weight.unflatten(1, (-1, group)) @ make_rotation(group, weight.device)).flatten(1)


@cache  # one small matrix for all weights of a file, which are restored at each use
def make_rotation(size: int, device: torch.device) -> Tensor:
    """Return the symmetric orthogonal matrix `size size` of a rotation, float32; `size` is a power of 4."""
    quarter = 1.0 - 2.0 * torch.eye(4).flip(1)
    matrix = quarter
    while len(matrix) < size:
        matrix = torch.kron(matrix, quarter)
    return (matrix / math.sqrt(size)).to(device)
