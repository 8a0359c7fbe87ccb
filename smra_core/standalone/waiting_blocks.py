"""Blocks of a loaded DiT whose weights wait in host memory, and how many of them must."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..training.memory import DitMemory, count_block_bytes, count_other_bytes
from ..wan.block_stream import ROOMS, BlockStream, Copies, pack
from ..wan.pinned_memory import PinnedPieces
from ..wan.spec import WanSpec, parse_linear

_HALF, _FLOAT = 2, 4
"""Bytes of a value in half precision, and in float32."""


@dataclass(frozen=True)
class Placement:
    """Where the weights of a DiT's blocks are, and in which form; the results are the same for all."""

    keeps_form: bool = False
    """Whether fp8 weights stay as they are in the file and are restored when they are used."""
    resident: int | None = None
    """Number of blocks that stay on the device; the others wait in host memory. None is all."""


def choose_placement(spec: WanSpec, spare: float, value_bytes: int, share_of_8_bits: float) -> Placement:
    """Return the fastest placement for a DiT that may take `spare` bytes of the device.

    A value takes `value_bytes` where it is computed with; `share_of_8_bits` of the blocks' are of 8 bits in
    the file.
    """
    other = count_other_bytes(spec) * value_bytes / _HALF
    if other + spec.blocks * count_block_bytes(spec, value_bytes) <= spare:
        return Placement()
    keeps_form = share_of_8_bits > 0
    if keeps_form:  # the widest weight, which is restored by way of float32 if each row has a scale
        spare -= spec.dim * spec.ffn * (_FLOAT + value_bytes)
    kept_bytes = _average_bytes(value_bytes, share_of_8_bits)
    fitting = int((spare - other) // count_block_bytes(spec, kept_bytes))
    if fitting >= spec.blocks:
        return Placement(keeps_form)
    return Placement(keeps_form, max(0, fitting - ROOMS))


def count_kept_bytes(spec: WanSpec, value_bytes: int, share_of_8_bits: float) -> DitMemory:
    """Return the memory of a DiT whose blocks may wait, and whose values of 8 bits stay so where all of it
    does not fit in `value_bytes` each (see `choose_placement`).
    """
    other = round(count_other_bytes(spec) * value_bytes / _HALF)
    kept, restored = (
        other + spec.blocks * count_block_bytes(spec, each)
        for each in (_average_bytes(value_bytes, share_of_8_bits), value_bytes)
    )
    return DitMemory(kept, can_wait=True, restored_bytes=restored if share_of_8_bits else None)


def _average_bytes(value_bytes: int, share_of_8_bits: float) -> float:
    return share_of_8_bits + (1 - share_of_8_bits) * value_bytes


class WaitingBlocks:
    """The linears of some blocks of a DiT, with their weights in pinned host memory."""

    def __init__(self, linears: Mapping[str, nn.Module], waiting: Sequence[int], device: torch.device):
        """Take all linears by native name, of which those of the blocks `waiting` lose their weight."""
        self._names = _collect_names(linears, waiting)
        self._pieces = PinnedPieces(device)
        try:
            packed = {
                block: self._pack([linears[name] for name in names]) for block, names in self._names.items()
            }
            self._stream = BlockStream(packed, Copies(device))
        except BaseException:  # also an interrupt
            self._pieces.release()
            raise

    def find_weight(self, name: str) -> Callable[[], Tensor] | None:
        """Return the function that gives a linear's weight on the device, in the form that it was given in;
        None for a linear whose block does not wait.
        """
        block = parse_linear(name).block
        if block not in self._names:
            return None
        index = self._names[block].index(name)
        return lambda: self._stream.take(block)[index]

    def close(self) -> None:
        """Give the memory on the device back, and let the host's memory be moved again."""
        self._stream.close()
        self._pieces.release()

    def _pack(self, linears: Sequence[nn.Module]) -> list[Tensor]:
        piece, weights = pack([linear.weight.detach() for linear in linears])
        for linear in linears:
            linear.register_parameter("weight", None)
        self._pieces.add(piece)
        return weights


def _collect_names(linears: Mapping[str, nn.Module], blocks: Sequence[int]) -> dict[int, list[str]]:
    """Return the names of the linears of these blocks."""
    names = defaultdict(list)
    for name in linears:
        if (block := parse_linear(name).block) in blocks:
            names[block].append(name)
    return dict(names)
