"""Metrics of the cells of a grid: each video is measured once, and the numbers are kept beside it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..data.video import read_video, read_video_size
from ..storage.atomic_write import write_atomically
from .evaluate import EvaluationModels, References, evaluate_video

MOST_FRAMES = 81
"""Most frames of a video that are measured."""


class Networks(NamedTuple):
    """Networks that measure the cells of a grid."""

    key: str
    """Text that names the networks; other networks measure anew."""
    load: Callable[[], EvaluationModels]
    """Loads them. It is called for a video that is not measured yet."""


class CellMetrics(NamedTuple):
    """Metrics of one video."""

    values: Mapping[str, float]
    left_out: Mapping[str, str]
    """Metrics that were not measured, with what they need."""


class CellMeter:
    """Meter of videos in files, which loads its networks for the first that is not measured yet."""

    def __init__(self, networks: Networks):
        self.key, self.load = networks.key, cache(networks.load)

    def measure(
        self, video: Path, references_key: str, make_references: Callable[[Tensor], References]
    ) -> CellMetrics:
        """Return the metrics of a video, from the file beside it where there is one.

        `make_references` gets the frames `F 3 H W` in [0, 1], to whose size and length a clip is to be
        fitted; `references_key` is a hash of what it returns.
        """
        path = video.with_name(f"{video.stem}.{_hash_text(self.key)}{references_key[:8]}.metrics.json")
        if not path.is_file():
            frames = read_video(video, read_video_size(video), MOST_FRAMES).frames
            result = evaluate_video(frames, make_references(frames), self.load())
            about = {"values": dict(result.values), "left_out": dict(result.left_out)}
            with write_atomically(path) as draft:
                draft.write_text(json.dumps(about), encoding="utf-8")
        return CellMetrics(**json.loads(path.read_text(encoding="utf-8")))


def describe_left_out(cells: Sequence[CellMetrics]) -> list[str]:
    """Return a sentence for each reason for which metrics were left out of all cells."""
    reasons: dict[str, list[str]] = {}
    for name, reason in {name: why for cell in cells for name, why in cell.left_out.items()}.items():
        if not any(name in cell.values for cell in cells):
            reasons.setdefault(reason, []).append(name)
    return [f"Left out: {', '.join(names)} ({reason})." for reason, names in reasons.items()]


def _hash_text(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:8]
