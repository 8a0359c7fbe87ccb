"""Weights of a frozen DiT's blocks that wait in host memory until their block is at work.

A training step goes through the blocks twice: forward, and then back. A waiting block is copied to the device
at most once each way, because recomputing it and its backward pass share one copy, and is never copied back.
There is room for two blocks on the device: while one works, the next in the same direction is copied. The two
that are there when the direction turns are not copied again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ROOMS = 2
"""Blocks whose weights, or inputs, have room on the device: the one that works, and the next."""
_ALIGNMENT = 256
"""Bytes at whose multiples weights begin, as in torch's own allocator on CUDA."""


def pack(weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copy weights on the host into one piece of memory; return the piece, in bytes, and the copies."""
    piece = torch.empty(_count_bytes(weights), dtype=torch.uint8)
    copies = _split_memory(piece, weights)
    for copy, weight in zip(copies, weights, strict=True):
        copy.copy_(weight)
    return piece, copies


def spread_waiting(blocks: int, resident: int) -> list[int]:
    """Return which of a DiT's blocks wait if so many stay on the device.

    They are spread evenly, so that the copy of one goes on beside the work of all blocks before it.
    """
    waiting = blocks - max(0, min(resident, blocks))
    return [(2 * index + 1) * blocks // (2 * waiting) for index in range(waiting)]


class Copies:
    """Copies to a device: on CUDA in a stream of their own, beside what the device computes, else at once."""

    def __init__(self, device: torch.device, beside_work: bool = True):
        """Take the device; if not `beside_work`, copies are made at once on CUDA, too."""
        self.device = device
        self._stream = torch.cuda.Stream(device) if beside_work and device.type == "cuda" else None

    def start(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Any:
        """Start to copy as soon as the device has done all that it was given before; the result is for
        `finish`.
        """
        if self._stream is None:
            for source, target in zip(sources, targets, strict=True):
                target.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for source, target in zip(sources, targets, strict=True):
                target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def finish(self, copy: Any) -> None:
        """Let what the device is given from now on wait for a copy."""
        if copy is not None:
            torch.cuda.current_stream(self.device).wait_event(copy)

    def stop(self) -> None:
        """Wait until all copies are done."""
        if self._stream is not None:
            self._stream.synchronize()


@dataclass
class _Room:
    """Memory of one block on the device."""

    memory: Tensor
    position: int | None = None
    """Position of the block whose weights are or will be here, among the waiting ones."""
    weights: list[Tensor] = field(default_factory=list)
    copy: Any = None


class BlockStream:
    """The waiting blocks of a DiT, of which two at a time are on a device."""

    def __init__(self, waiting: Mapping[int, Sequence[Tensor]], copies: Copies):
        """Take the weights of each waiting block, by the block's index; they are on the host, and best in
        pinned memory.
        """
        self._blocks = sorted(waiting)
        self._weights = [list(waiting[block]) for block in self._blocks]
        self._positions = {block: position for position, block in enumerate(self._blocks)}
        self._copies = copies
        size = max(map(_count_bytes, self._weights), default=0)
        rooms = min(ROOMS, len(self._blocks))
        self._rooms = [
            _Room(torch.empty(size, dtype=torch.uint8, device=copies.device)) for _ in range(rooms)
        ]
        self._at: int | None = None

    @property
    def blocks(self) -> list[int]:
        """Indices of the waiting blocks."""
        return self._blocks

    @property
    def room_bytes(self) -> int:
        """Bytes on the device."""
        return sum(room.memory.numel() for room in self._rooms)

    def take(self, block: int) -> list[Tensor]:
        """Return the weights of a waiting block on the device, in the order and form that they were given in.

        They may be used by what the device is given until another block is taken, and must not be changed.
        """
        position = self._positions[block]
        if position != self._at:
            self._move_to(position)
        return self._find_room(position).weights

    def close(self) -> None:
        """Give the memory on the device back."""
        self._copies.stop()
        self._rooms.clear()

    def _move_to(self, position: int) -> None:
        forward = self._is_forward(position)
        room = self._find_room(position)
        if room is None:
            room = next((each for each in self._rooms if each.position != self._at), self._rooms[0])
            self._fill(room, position)
        self._copies.finish(room.copy)
        room.copy, self._at = None, position
        following = position + (1 if forward else -1)
        if 0 <= following < len(self._blocks) and self._find_room(following) is None:
            self._fill(next(each for each in self._rooms if each is not room), following)

    def _is_forward(self, position: int) -> bool:
        """Whether the blocks are gone through forward, seen from the last one that was taken."""
        if self._at is None or abs(position - self._at) != 1:
            return position < len(self._blocks) - 1  # a pass begins, at the last block if it goes back
        return position > self._at

    def _find_room(self, position: int) -> _Room | None:
        return next((room for room in self._rooms if room.position == position), None)

    def _fill(self, room: _Room, position: int) -> None:
        room.position = None  # an interrupt would leave half of a block here
        room.weights = _split_memory(room.memory, self._weights[position])
        room.copy = self._copies.start(self._weights[position], room.weights)
        room.position = position


def _count_bytes(weights: Sequence[Tensor]) -> int:
    return sum(_align(weight.nbytes) for weight in weights)


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _split_memory(memory: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of the weights' shapes and dtypes one after the other in `memory`, which is in bytes."""
    placed, start = [], 0
    for weight in weights:
        placed.append(memory[start : start + weight.nbytes].view(weight.dtype).view(weight.shape))
        start += _align(weight.nbytes)
    return placed
