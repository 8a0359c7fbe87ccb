"""Host memory that CUDA copies from without a copy in between, and beside what the device computes.

Memory that is there already is registered with the driver. Torch's own pinned memory is rounded up to a power
of two, which would be half of a 14B model more.
"""

import logging

import torch
from torch import Tensor

log = logging.getLogger("smrabooth")

_DONE = 0
"""What CUDA's functions return where nothing went wrong."""


class PinnedPieces:
    """Pieces of host memory that are registered with CUDA until they are released."""

    def __init__(self, device: torch.device):
        """Take the device that is to be copied to; nothing is registered if it is not a CUDA device."""
        self.device = device
        self._pieces: list[Tensor] = []
        self._is_refused = device.type != "cuda"

    def add(self, piece: Tensor) -> None:
        """Register a piece; where the system allows no more, copies from it are slower, which is logged."""
        if self._is_refused:
            return
        error = torch.cuda.cudart().cudaHostRegister(piece.data_ptr(), piece.nbytes, 0)
        if int(error) == _DONE:
            self._pieces.append(piece)
            return
        self._is_refused = True
        log.warning(
            "The system lets no more than %.1f GiB of host memory be pinned, so that part of the weights is "
            "copied more slowly.", sum(each.nbytes for each in self._pieces) / 2**30,
        )  # fmt: skip

    def release(self) -> None:
        """Undo all registrations; no copy from the pieces may be under way."""
        while self._pieces:
            torch.cuda.cudart().cudaHostUnregister(self._pieces.pop().data_ptr())
