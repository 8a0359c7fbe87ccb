"""Context manager for a model that is loaded on first use and freed at the end."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

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


def free_memory() -> None:
    """Release the memory of models that are no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
