"""Functions whose activations are recomputed in the backward pass, instead of being kept."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.checkpoint import checkpoint

_thread = threading.local()  # CUDA's backward pass, and so the recomputation, runs in a thread of its own


def is_recomputing() -> bool:
    """Return whether a function of `run_checkpointed` is being run again, for the backward pass."""
    return getattr(_thread, "is_recomputing", False)


@contextmanager
def _recomputing() -> Iterator[None]:
    before, _thread.is_recomputing = is_recomputing(), True
    try:
        yield
    finally:
        _thread.is_recomputing = before


def run_checkpointed(function: Callable, *args, **kwargs) -> Any:
    """Return `function(*args, **kwargs)`, keeping only its inputs for the backward pass.

    An exception that rises in the function leaves nothing behind. Torch's own non-reentrant checkpoint is
    left in the middle of a generator then, and its hooks on saved tensors stay installed as long as anything
    refers to the traceback: every later backward pass in the process would fail. Here the exception is taken
    past the end of the checkpoint and raised there. No state of random generators is kept, because frozen
    models draw no random numbers.
    """
    errors: list[BaseException] = []
    has_run = False

    def run(*inputs, **options):
        nonlocal has_run
        if has_run:  # torch itself stops this pass by an exception, and has its hooks in a with block
            with _recomputing():
                return function(*inputs, **options)
        has_run = True
        try:
            return function(*inputs, **options)
        except BaseException as error:  # also an interrupt
            errors.append(error)
            return None

    result = checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    if errors:
        raise errors.pop()
    return result
