"""The bench's table: the mean of every metric, with a 95 % interval over trainings."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .metrics import METRIC_HELP
from .variants import VARIANTS

DRAWS = 2000
"""Number of bootstrap samples."""


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f}..{self.high:.2f})"


def read_clips(path: Path) -> list[dict]:
    """Read the measured clips that the bench wrote, a dictionary for each."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def render_table(clips: list[dict]) -> str:
    """Render a Markdown table with a row for each variant, and the explanation of its columns."""
    by_variant = defaultdict(list)
    for clip in clips:
        by_variant[clip["variant"]].append(clip)
    lines = ["| variant | n | " + " | ".join(METRIC_HELP) + " |", "|---" * (len(METRIC_HELP) + 2) + "|"]
    for name in (variant.name for variant in VARIANTS if variant.name in by_variant):
        cells = [str(estimate_mean(by_variant[name], column)) for column in METRIC_HELP]
        lines.append(f"| {name} | {len(by_variant[name])} | " + " | ".join(cells) + " |")
    seeds = len({clip["seed"] for clip in clips})
    cases = len({(clip["subject"], clip["motion"], clip["seed"]) for clip in clips})
    lines += ["", f"{seeds} seed(s), {cases} case(s) of subject, motion and seed; intervals are 95 %, by"]
    lines += ["drawing whole cases with replacement, as clips of one training are not independent.", ""]
    return "\n".join(lines + [f"- `{name}`: {text}" for name, text in METRIC_HELP.items()])


def estimate_mean(clips: list[dict], column: str) -> Interval:
    """Return the mean of a metric and its 95 % interval, by a bootstrap over cases.

    Whole cases are drawn with replacement, because the clips of one training are not independent.
    """
    groups = defaultdict(list)
    for clip in clips:
        groups[clip["subject"], clip["motion"], clip["seed"]].append(clip[column])
    return estimate_means([float(np.mean(values)) for values in groups.values()])


def estimate_means(values: Sequence[float]) -> Interval:
    """Return the mean of values, one of each training, and its 95 % interval by drawing them with
    replacement.
    """
    means = np.array(values)
    drawn = np.random.default_rng(0).choice(means, (DRAWS, len(means))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(means.mean()), float(low), float(high))
