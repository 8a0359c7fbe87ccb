"""Inputs of blocks that wait in host memory from a block's forward pass until it is recomputed.

A checkpointed block keeps its input alone, but a DiT has many: at 49 frames of 576x320 the 40 of a 14B are
3.8 GB in half precision. Each input is copied to the host beside the work of its block, and back when the
backward pass gets there.
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
        self.bytes = 0
        """Bytes of host memory that are taken."""

    def run_checkpointed(self, block: Callable, x: Tensor, *args, **kwargs) -> Any:
        """Return `block(x, *args, **kwargs)`, of which x waits in host memory (see wan.recompute)."""
        piece = self._take_piece(x.nbytes)
        waiting = _Waiting(x, piece[: x.nbytes].view(x.dtype).view(x.shape))
        weakref.finalize(waiting, self._free.append, piece)
        copy = self._copies.start([x.detach()], [waiting.copy])
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

    def __init__(self, here: Tensor, copy: Tensor):
        self.here: Tensor | None = here.detach()
        self.copy, self.device = copy, here.device

    def fetch(self) -> Tensor:
        """Return the input on the device."""
        if self.here is not None:
            return self.here
        return self.copy.to(self.device, non_blocking=True, copy=True)


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
