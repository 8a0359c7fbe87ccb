"""Functions whose activations are recomputed in the backward pass, instead of being kept."""

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint


def run_checkpointed(function: Callable, *args, **kwargs) -> Any:
    """Return `function(*args, **kwargs)`, keeping only its inputs for the backward pass.

    An exception that rises in the function leaves nothing behind. Torch's own non-reentrant checkpoint is
    left in the middle of a generator then, and its hooks on saved tensors stay installed as long as anything
    refers to the traceback: every later backward pass in the process would fail. Here the exception is taken
    past the end of the checkpoint and raised there. No state of random generators is kept, because frozen
    models draw no random numbers.
    """
    errors: list[BaseException] = []
    is_recomputing = False

    def run(*inputs, **options):
        nonlocal is_recomputing
        if is_recomputing:  # torch itself stops this pass by an exception, and has its hooks in a with block
            return function(*inputs, **options)
        is_recomputing = True
        try:
            return function(*inputs, **options)
        except BaseException as error:  # also an interrupt
            errors.append(error)
            return None

    result = checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    if errors:
        raise errors.pop()
    return result
