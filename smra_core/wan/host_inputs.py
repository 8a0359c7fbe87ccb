"""Inputs of blocks that wait in host memory from a block's forward pass until it is recomputed.

A checkpointed block keeps its input alone, but a DiT has many: at 49 frames of 576x320 the 40 of a 14B are
3.8 GB in half precision. Each input is copied to the host beside the work of its block, and back beside the
backward pass of the block that follows it.
"""

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .block_stream import Copies
from .pinned_memory import PinnedPieces
from .recompute import run_checkpointed


class HostInputs:
    """Host memory for the inputs of blocks, used again from step to step."""

    def __init__(self, device: torch.device):
        self._copies, self._pinned = Copies(device), PinnedPieces(device)
        self._free: list[Tensor] = []
        self._last: Callable[[], _Waiting | None] = lambda: None
        self.bytes = 0
        """Bytes of host memory that are taken."""

    def run_checkpointed(self, block: Callable, x: Tensor, *args, **kwargs) -> Any:
        """Return `block(x, *args, **kwargs)`, of which x waits in host memory (see wan.recompute)."""
        piece = self._take_piece(x.nbytes)
        in_host = piece[: x.nbytes].view(x.dtype).view(x.shape)
        waiting = _Waiting(x, in_host, self._copies, self._last)
        self._last = weakref.ref(waiting)  # of a step that was given up, nothing may wait on
        weakref.finalize(waiting, self._free.append, piece)
        copy = self._copies.start([x.detach()], [in_host])
        try:
            return run_checkpointed(_run_on_input, _Leave.apply(x), waiting, block, *args, **kwargs)
        finally:
            self._copies.finish(copy)  # only then may the memory of x be used again
            waiting.here = None

    def close(self) -> None:
        """Let the host's memory be moved again; nothing that waits can be recomputed any more."""
        self._copies.stop()
        self._pinned.release()
        self._free.clear()
        self.bytes = 0

    def _take_piece(self, size: int) -> Tensor:
        """Return a piece of host memory that no graph uses, of at least so many bytes."""
        fitting = [index for index, piece in enumerate(self._free) if piece.nbytes >= size]
        if fitting:
            return self._free.pop(min(fitting, key=lambda index: self._free[index].nbytes))
        piece = torch.empty(size, dtype=torch.uint8)
        self._pinned.add(piece)
        self.bytes += size
        return piece


class _Waiting:
    """An input in host memory; `here` is the one on the device during the forward pass."""

    def __init__(
        self, here: Tensor, in_host: Tensor, copies: Copies, find_before: Callable[[], "_Waiting | None"]
    ):
        """Take the input, the memory that it waits in, and what finds the input that began to wait before."""
        self.here: Tensor | None = here.detach()
        self._in_host, self._device, self._copies, self._find_before = (
            in_host, here.device, copies, find_before
        )  # fmt: skip
        self._coming: tuple[Tensor, Any] | None = None

    def fetch(self) -> Tensor:
        """Return the input on the device; in the backward pass, start to copy the one that it needs next."""
        if self.here is not None:
            return self.here
        self.start()
        (here, copy), self._coming = self._coming, None
        self._copies.finish(copy)
        if (before := self._find_before()) is not None:
            before.start()
        return here

    def start(self) -> None:
        """Start to copy the input to the device, unless it is coming already."""
        if self._coming is None:
            here = torch.empty_like(self._in_host, device=self._device)
            self._coming = here, self._copies.start([self._in_host], [here])

    def __del__(self):
        if self._coming is not None:  # only after the copy may its place be used again
            self._copies.finish(self._coming[1])


def _run_on_input(stand_in: Tensor, waiting: _Waiting, block: Callable, *args, **kwargs) -> Any:
    return block(_Fetch.apply(stand_in, waiting), *args, **kwargs)


class _Leave(torch.autograd.Function):
    """A stand-in for x that takes no memory; its gradient is that of x."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.new_full((), math.nan).expand(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient


class _Fetch(torch.autograd.Function):
    """The values of x for its stand-in."""

    @staticmethod
    def forward(ctx, stand_in: Tensor, waiting: _Waiting) -> Tensor:
        return waiting.fetch().view_as(stand_in)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient, None
