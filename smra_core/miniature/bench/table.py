"""The bench's table: the mean of every metric, with a 95 % interval over trainings."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .metrics import METRIC_HELP
from .variants import VARIANTS

DRAWS = 2000
"""Number of bootstrap samples."""
REFERENCE = "SMRABooth (T_point 15)"
COMPARED = ("likeness", "x", "y", "recognized", "leak")
"""Metrics whose differences are printed."""


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f}..{self.high:.2f})"


class Comparison(NamedTuple):
    """A paired difference, and the number of cases that it is over."""

    difference: Interval
    cases: int


def read_clips(path: Path) -> list[dict]:
    """Read the measured clips that the bench wrote, a dictionary for each."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def render_table(clips: list[dict]) -> str:
    """Render a Markdown table with a row for each variant, and the explanation of its columns."""
    lines = [render_means(clips, METRIC_HELP)]
    seeds = len({clip["seed"] for clip in clips})
    cases = len({(clip["subject"], clip["motion"], clip["seed"]) for clip in clips})
    lines += ["", f"{seeds} seed(s), {cases} case(s) of subject, motion and seed; intervals are 95 %, by"]
    lines += ["drawing whole cases with replacement, as clips of one training are not independent.", ""]
    return "\n".join(lines + [f"- `{name}`: {text}" for name, text in METRIC_HELP.items()])


def render_means(clips: list[dict], columns: Iterable[str]) -> str:
    """Render a Markdown table of the means of columns, with their intervals and a row for each variant."""
    by_variant, columns = defaultdict(list), tuple(columns)
    for clip in clips:
        by_variant[clip["variant"]].append(clip)
    lines = ["| variant | n | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name in (variant.name for variant in VARIANTS if variant.name in by_variant):
        cells = [str(estimate_mean(by_variant[name], column)) for column in columns]
        lines.append(f"| {name} | {len(by_variant[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_differences(
    clips: list[dict], reference: str = REFERENCE, columns: Sequence[str] = COMPARED
) -> str:
    """Render a Markdown table of each variant's differences to the reference, paired clip by clip over the
    cases that both have.
    """
    present = {clip["variant"] for clip in clips}
    names = [v.name for v in VARIANTS if v.name in present and v.name != reference]
    if reference not in present or not names:
        return f"No differences: they need {reference!r} and another variant."
    lines = [
        f"| variant, less {reference} | cases | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name in names:
        cells = [compare_variants(clips, name, reference, column) for column in columns]
        lines.append(f"| {name} | {cells[0].cases} | {' | '.join(str(cell.difference) for cell in cells)} |")
    return "\n".join(lines)


def compare_variants(clips: list[dict], name: str, other: str, column: str) -> Comparison:
    """Return the mean difference of two variants, paired by case and clip, with its interval over cases."""
    first, second = (
        {
            ((c["subject"], c["motion"], c["seed"]), c["clip"]): c[column]
            for c in clips
            if c["variant"] == each
        }
        for each in (name, other)
    )
    groups = defaultdict(list)
    for case, clip in first.keys() & second.keys():
        groups[case].append(first[case, clip] - second[case, clip])
    return Comparison(estimate_means([float(np.mean(groups[case])) for case in sorted(groups)]), len(groups))


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
