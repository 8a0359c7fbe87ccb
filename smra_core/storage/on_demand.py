"""Context managers for models that take memory only while they are used."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model")


@contextmanager
def loaded_on_first_use(load: Callable[[], Model]) -> Iterator[Callable[[], Model]]:
    """Yield a function that loads the model on its first call and returns the same model after that.

    The model is freed at the end of the block. A run whose results are all cached loads nothing.
    """
    loaded: list[Model] = []

    def get_model() -> Model:
        if not loaded:
            loaded.append(load())
        return loaded[0]

    try:
        yield get_model
    finally:
        if loaded:
            loaded.clear()
            free_memory()


@contextmanager
def on_device(device: torch.device, *nets: nn.Module) -> Iterator[None]:
    """Move nets to the device for the length of the block, and to host memory at its end."""
    try:
        for net in nets:
            net.to(device)
        yield
    finally:
        for net in nets:
            net.to("cpu")


def free_memory() -> None:
    """Release the memory of models that are no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
