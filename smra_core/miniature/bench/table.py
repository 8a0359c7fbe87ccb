"""The bench's table: the mean of every figure, with a 95 % interval over trainings."""

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .arms import ARMS
from .metrics import METRIC_HELP

DRAWS = 2000


class Interval(NamedTuple):
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f}..{self.high:.2f})"


def read_clips(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(clips: list[dict]) -> str:
    """Markdown, a row an arm, then what the columns say."""
    by_arm = defaultdict(list)
    for clip in clips:
        by_arm[clip["arm"]].append(clip)
    lines = ["| arm | n | " + " | ".join(METRIC_HELP) + " |", "|---" * (len(METRIC_HELP) + 2) + "|"]
    for name in (arm.name for arm in ARMS if arm.name in by_arm):
        cells = [str(bootstrap(by_arm[name], column)) for column in METRIC_HELP]
        lines.append(f"| {name} | {len(by_arm[name])} | " + " | ".join(cells) + " |")
    seeds = len({clip["seed"] for clip in clips})
    cases = len({(clip["subject"], clip["motion"], clip["seed"]) for clip in clips})
    lines += ["", f"{seeds} seed(s), {cases} case(s) of subject, motion and seed; intervals are 95 %, by"]
    lines += ["drawing whole cases with replacement, as clips of one training are not independent.", ""]
    return "\n".join(lines + [f"- `{name}`: {text}" for name, text in METRIC_HELP.items()])


def bootstrap(clips: list[dict], column: str) -> Interval:
    """Mean over clips, and its 95 % interval when whole cases are drawn with replacement."""
    groups = defaultdict(list)
    for clip in clips:
        groups[clip["subject"], clip["motion"], clip["seed"]].append(clip[column])
    means = np.array([np.mean(values) for values in groups.values()])
    drawn = np.random.default_rng(0).choice(means, (DRAWS, len(means))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(means.mean()), float(low), float(high))
