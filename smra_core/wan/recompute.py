"""Functions whose activations are recomputed in the backward pass, instead of being kept."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from .host_inputs import HostInputs

_thread = threading.local()  # CUDA's backward pass, and so the recomputation, runs in a thread of its own


_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}").default
    for kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    if hasattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")
}
"""Operators of torch's attention kernels."""


def _is_kept(func: Callable, args: tuple) -> bool:
    """Whether an operator attends from tokens to as many: self-attention, not that to the text, whose output
    is as large and takes far fewer operations.
    """
    return func in _ATTENTION and args[0].shape[-2] == args[1].shape[-2]


class KeptBlocks(NamedTuple):
    """Numbers of a DiT's blocks that keep activations for the backward pass; the others keep their input.

    The gradients are the same for all choices.
    """

    whole: int = 0
    """Number of blocks, from the last, of which nothing is recomputed. The backward pass comes to the last
    ones first and frees what they keep, before it needs memory for the others.
    """
    attention: int = 0
    """Number of blocks before those that keep the output of self-attention and recompute the rest."""
    staying: int | None = None
    """Number of blocks before those whose input stays on the device. It waits in host memory for all that are
    before them; None is for no block.
    """

    def run(self, following: int, host_inputs: "HostInputs", block: Callable, *args, **kwargs) -> Any:
        """Return `block(*args, **kwargs)` of the block that so many follow, keeping what it is to keep."""
        if following < self.whole:
            return block(*args, **kwargs)
        checkpointed = self.whole + self.attention
        if following < checkpointed:
            return run_checkpointed(block, *args, keeps_attention=True, **kwargs)
        waits = self.staying is not None and following >= checkpointed + self.staying
        run = host_inputs.run_checkpointed if waits else run_checkpointed
        return run(block, *args, **kwargs)


def is_checkpointed() -> bool:
    """Return whether a function of `run_checkpointed` is being run, for the first time or again."""
    return _read_run() is not None


def is_recomputing() -> bool:
    """Return whether a function of `run_checkpointed` is being run again, for the backward pass."""
    return _read_run() == "again"


def recomputing() -> AbstractContextManager[None]:
    """Let `is_recomputing` return true inside of a with block."""
    return _set_run("again")


def _read_run() -> str | None:
    return getattr(_thread, "run", None)


@contextmanager
def _set_run(run: str) -> Iterator[None]:
    before, _thread.run = _read_run(), run
    try:
        yield
    finally:
        _thread.run = before


class _KeepAttention(TorchDispatchMode):
    """Keeps what self-attention returns. (Torch's selective checkpoint would refuse `FrozenForward`'s
    placeholder, since it asks for the same operators in both passes.)
    """

    def __init__(self, kept: list[tuple]):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if _is_kept(func, args):
            self.kept.append(_detach_all(result))
        return result


class _ReuseAttention(TorchDispatchMode):
    """Returns what was kept, in the same order, in place of computing self-attention again."""

    def __init__(self, kept: list[tuple]):
        super().__init__()
        self.kept, self.next = kept, iter(())

    def __enter__(self):
        self.next = iter(self.kept)
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _detach_all(next(self.next)) if _is_kept(func, args) else func(*args, **(kwargs or {}))


def _detach_all(values: tuple) -> tuple:
    # Autograd writes the graph into the tensor that an operator returns: what is kept must be another one.
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in values)


def _keep_attention() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    kept: list[tuple] = []
    return _KeepAttention(kept), _ReuseAttention(kept)


def run_checkpointed(function: Callable, *args, keeps_attention: bool = False, **kwargs) -> Any:
    """Return `function(*args, **kwargs)`, keeping only its inputs for the backward pass and, if
    `keeps_attention`, the output of self-attention, which takes the most operations for its size.

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
            with recomputing():
                return function(*inputs, **options)
        has_run = True
        try:
            with _set_run("first"):
                return function(*inputs, **options)
        except BaseException as error:  # also an interrupt
            errors.append(error)
            return None

    if keeps_attention:
        kwargs["context_fn"] = _keep_attention
    result = checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    if errors:
        raise errors.pop()
    return result
