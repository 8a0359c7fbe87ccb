"""Windows of several clips, with as many decoder states in memory as there is room for."""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import torch

from ..decoding.wan_decoder import WanVideoDecoder
from ..decoding.windows import DecodeWindow, warm_windows
from .mora import MotionSample

log = logging.getLogger("smrabooth")

MOST_STATE_BYTES = 8 << 30
"""Bytes of host memory that decoder states may take. Those of 49 frames of 576x320 take about 2.6 GB."""


class ClipWindows(Mapping[str, Sequence[DecodeWindow]]):
    """Windows of each clip by its name, with the decoder states at which they start.

    The states are computed once for each clip. Where those of all clips do not fit into the limit, the ones
    that were not used for longest are freed, and computed again, with the same result, when they are needed.
    """

    def __init__(
        self,
        samples: Sequence[MotionSample],
        decoder: WanVideoDecoder,
        size: int,
        warmup: int,
        device: torch.device,
        limit: int = MOST_STATE_BYTES,
    ):
        self._latents = {sample.name: sample.latents for sample in samples}
        self._decoder, self._size, self._warmup, self._device = decoder, size, warmup, device
        self._limit, self._kept = limit, OrderedDict[str, list[DecodeWindow]]()
        self._is_full = False
        for name in self._latents:
            if not self._is_full:
                self[name]  # now, because later the DiT takes memory, too

    def __len__(self) -> int:
        return len(self._latents)

    def __iter__(self) -> Iterator[str]:
        return iter(self._latents)

    def __getitem__(self, name: str) -> list[DecodeWindow]:
        if name not in self._kept:
            latents = self._latents[name].to(self._device)
            self._kept[name] = warm_windows(latents, self._decoder, self._size, self._warmup)
            self._free_oldest()
        self._kept.move_to_end(name)
        return self._kept[name]

    def _free_oldest(self) -> None:
        while len(self._kept) > 1 and sum(map(_count_bytes, self._kept.values())) > self._limit:
            self._kept.popitem(last=False)
            if not self._is_full:
                log.info(
                    "The decoder states of %d clips take more than %.0f GiB. Those of clips that were not "
                    "used for long are computed again, which takes time; decode 'tiny' has no states.",
                    len(self), self._limit / 2**30,
                )  # fmt: skip
            self._is_full = True


def _count_bytes(windows: Sequence[DecodeWindow]) -> int:
    """Return the bytes of the windows' states; a tensor that two of them share counts once."""
    states = {id(tensor): tensor.nbytes for window in windows for tensor in window.state or ()}
    return sum(states.values())
