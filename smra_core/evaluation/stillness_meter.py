"""The stillness meter: does a subject LoRA alone make videos stand still?

A LoRA of pictures teaches single frames, so that its videos may stop moving; the paper sees it where T_point
is too early. Videos of the same prompts are made twice from the same noise, with the subject LoRA alone and
without any; the meter compares the mean speed of their optical flow.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..encoders.sea_raft import SeaRaft
from .evaluate import measure_flow
from .interval import Interval, estimate_ratio

LEAST_MOTION = 0.7
"""Share of the base's motion below which the verdict is that the LoRA stills."""
LEAST_SPEED = 0.05
"""Mean speed, in pixels per frame, below which the base's own videos count as standing still."""
WAY_OUT = (
    "Lower the subject's strength before T_point, let T_point come at a later step, train fewer steps, "
    "or add clips of the subject (as_clip)"
)


class Stillness(NamedTuple):
    """Motion of videos with a subject LoRA."""

    motion: Interval
    """Share of the base's mean speed; 0 stands still, 1 moves as much."""

    def describe(self) -> str:
        """Return the number, the verdict, and the setting to change."""
        number = f"Motion: {self.motion} of the base model's."
        if self.motion.high < LEAST_MOTION:
            return f"{number} It stills. {WAY_OUT}."
        if self.motion.low >= LEAST_MOTION:
            return f"{number} It does not still: at least {100 * LEAST_MOTION:.0f} % of the motion is left."
        return f"{number} This many seeds cannot tell. Measure more of them (--seeds)."


def measure_stillness(sea_raft: SeaRaft, videos: Iterable[Tensor], bases: Iterable[Tensor]) -> Stillness:
    """Return how much videos move with a subject LoRA alone, over seeds: each entry is `B F 3 H W` in [0, 1].

    `bases` are made without any LoRA from the same noise and prompts. Raise ValueError as `compare_speeds`.
    """
    return compare_speeds(
        [measure_speed(sea_raft, batch) for batch in videos],
        [measure_speed(sea_raft, batch) for batch in bases],
    )


def compare_speeds(speeds: Sequence[float], base_speeds: Sequence[float]) -> Stillness:
    """Return the stillness from the mean speeds of each seed, with the subject LoRA and without any.

    Raise ValueError for fewer than two seeds, and where the base model's videos stand still, which leaves
    nothing to compare.
    """
    if max(base_speeds, default=0.0) < LEAST_SPEED:
        raise ValueError(
            "The base model's own videos stand still, so that stillness cannot be measured. Give prompts in "
            "which something moves (--prompts)."
        )
    return Stillness(estimate_ratio(speeds, base_speeds))


def measure_speed(sea_raft: SeaRaft, videos: Tensor) -> float:
    """Return the mean length of the optical flow, in pixels per frame, of videos `B F 3 H W` in [0, 1]."""
    return sum(measure_flow(sea_raft, video).norm(dim=1).mean().item() for video in videos) / len(videos)
