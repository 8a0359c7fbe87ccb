"""Layers of a DiT's blocks whose weights ComfyUI has left in host memory, moved block by block in training.

ComfyUI moves such a weight whenever its layer is called: forward, recomputed and backward. Here the weights
of a block are moved together, the next block's are copied beside the work of the one before, and recomputing
a block and its backward pass share one copy (see wan.block_stream). While a layer runs, its weight is
exchanged for the copy on the device; ComfyUI's own code then casts, patches and dequantizes it as always.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...smra_core.wan.block_stream import BlockStream, Copies
from .versions import has_offload_stream, is_quantized, loaded_weight

_NAMES = "weight", "bias"


class _Place(NamedTuple):
    """Where the tensors of a layer are among those of its block."""

    block: int
    start: int
    parameters: dict[str, Tensor]
    """The layer's own parameters, in host memory."""


class OffloadedLayers:
    """The layers that wait in host memory, of a DiT that is loaded on a device."""

    def __init__(self, blocks: Sequence[Sequence[nn.Module]]):
        """Take the layers of each block that may wait; they are not looked at before `open`."""
        self._blocks = blocks
        self._places: dict[nn.Module, _Place] = {}
        self._stream: BlockStream | None = None

    def open(self, device: torch.device) -> None:
        """Take note of the layers that are not on the device, once ComfyUI has loaded the model."""
        self.close()
        waiting: dict[int, list[Tensor]] = {}
        for index, layers in enumerate(self._blocks):
            for layer in layers:
                if is_elsewhere(layer, device):
                    tensors, own = waiting.setdefault(index, []), _list_parameters(layer)
                    self._places[layer] = _Place(index, len(tensors), own)
                    tensors += [part for parameter in own.values() for part in _list_parts(parameter)]
        if waiting:
            self._stream = BlockStream(waiting, Copies(device, has_offload_stream(device)))

    def close(self) -> None:
        """Give the memory on the device back."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._places.clear()

    def load(self, layer: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Load weight and bias of a layer (see versions.loaded_weight)."""
        if layer in self._places:
            return self._load_exchanged(layer, like)
        return loaded_weight(layer, like)

    def wrap(self, layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a layer's forward that finds the weight on the device, where it waits in host memory."""

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if layer not in self._places:
                return forward(x, *args, **kwargs)
            with self._exchange(layer):
                return forward(x, *args, **kwargs)

        return run

    @contextmanager
    def _load_exchanged(self, layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        with self._exchange(layer), loaded_weight(layer, like) as loaded:
            yield loaded

    @contextmanager
    def _exchange(self, layer: nn.Module) -> Iterator[None]:
        """Exchange a layer's parameters for their copies on the device, inside of a with block."""
        place, own = self._places[layer], layer._parameters
        if any(own[name] is not parameter for name, parameter in place.parameters.items()):
            yield  # ComfyUI has moved or patched it since, and knows where it is
            return
        tensors = iter(self._stream.take(place.block)[place.start :])
        try:
            for name, parameter in place.parameters.items():
                own[name] = _rebuild(parameter, tensors)
            yield
        finally:
            own.update(place.parameters)


def is_elsewhere(layer: nn.Module, device: torch.device) -> bool:
    """Whether a layer's weight is not on the device, and consists of tensors that can be copied there."""
    weight = layer.weight
    if weight.device == device:
        return False
    return type(weight) is nn.Parameter or (is_quantized(weight) and hasattr(weight, "__tensor_flatten__"))


def _list_parameters(layer: nn.Module) -> dict[str, Tensor]:
    return {name: layer._parameters[name] for name in _NAMES if layer._parameters.get(name) is not None}


def _list_parts(parameter: Tensor) -> list[Tensor]:
    """Return the plain tensors that a parameter consists of."""
    if not is_quantized(parameter):
        return [parameter.detach()]
    names, _ = parameter.__tensor_flatten__()
    return [getattr(parameter, name) for name in names]


def _rebuild(parameter: Tensor, tensors: Iterator[Tensor]) -> Tensor:
    """Return a parameter of the same kind that consists of the next tensors."""
    if not is_quantized(parameter):
        return next(tensors)
    names, context = parameter.__tensor_flatten__()
    parts = {name: next(tensors) for name in names}
    return type(parameter).__tensor_unflatten__(parts, context, parameter.shape, parameter.stride())
