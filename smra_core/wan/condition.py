"""What a variant of WAN takes of a sample besides noisy latents, noise level and text: image channels of
image to video, CLIP features, control videos.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

ExtraInputs = Mapping[str, Any]
"""Inputs of a variant by name: tensors, lists of tensors, and constants such as strengths.

Tensors of a sample have no axis `B`; those of a batch have it first. `IMAGE_CHANNELS` are appended to the
noisy latents; the others are arguments of the DiT's forward by these names.
"""
IMAGE_CHANNELS = "c_concat"
"""Name, as in ComfyUI, of the channels `C f h w` that image-to-video models take beside the latents' own."""
DENOISE_MASK = "denoise_mask"
"""Name, as in ComfyUI, of the mask `1 f h w` by which TI2V-5B is told which latents are given: 0 there, whose
tokens get timestep 0, and 1 elsewhere. The given latents stand clean among the noisy ones.
"""
NO_INPUTS: ExtraInputs = MappingProxyType({})
"""The extra inputs of text to video."""


class Condition(NamedTuple):
    """What a variant of WAN is told about one sample."""

    inputs: ExtraInputs = NO_INPUTS
    given: Tensor | None = None
    """Whether each latent is wholly given to the model, bool `f`; None where no latent is."""


def stack_inputs(samples: Sequence[ExtraInputs]) -> ExtraInputs:
    """Stack the extra inputs of samples along a new first axis.

    Names, shapes and constants must be the same in all (see training.batches.describe_shape).
    """
    return {name: _stack([each[name] for each in samples]) for name in samples[0]}


def _stack(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(list(values))
    if isinstance(values[0], list):
        return [_stack(parts) for parts in zip(*values, strict=True)]
    return values[0]


def move_inputs(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Return extra inputs with their tensors on a device, those of floating point in `dtype` if given."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {name: move_inputs(part, device, dtype) for name, part in value.items()}
    if isinstance(value, list):
        return [move_inputs(part, device, dtype) for part in value]
    return value


def list_parts(inputs: ExtraInputs) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and constants of extra inputs by name, sorted; those in lists are numbered."""
    for name, value in sorted(inputs.items()):
        parts = list(enumerate(value)) if isinstance(value, list) else [("", value)]
        for number, part in parts:
            yield f"{name}{number}", part


def describe_input(part: Any) -> Any:
    """Return the shape of a tensor, and a constant as it is."""
    return tuple(part.shape) if isinstance(part, Tensor) else part
