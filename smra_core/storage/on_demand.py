"""Models that are loaded when first needed and freed before the next one comes."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Model = TypeVar("Model")


@contextmanager
def loaded_on_first_use(load: Callable[[], Model]) -> Iterator[Callable[[], Model]]:
    """Yield a function that loads the model at its first call and returns the same one after; free it at the
    end.

    A run whose results are all cached thus loads nothing.
    """
    held: list[Model] = []

    def model() -> Model:
        if not held:
            held.append(load())
        return held[0]

    try:
        yield model
    finally:
        if held:
            held.clear()
            free_memory()


def free_memory() -> None:
    """Give memory of models that nobody holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
