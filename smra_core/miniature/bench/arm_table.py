"""Tables of the arms: means with intervals over trainings, and differences paired clip by clip."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from .table import Interval, estimate_means

NOT_MEASURED = ("arm", "case", "seed", "steps", "clip")
"""What a line of the file has besides measurements."""


def render_arms(clips: Sequence[dict], steps: int) -> str:
    """Render a Markdown table with a row for each arm after this many steps."""
    by_arm = defaultdict(list)
    for clip in clips:
        if clip["steps"] == steps:
            by_arm[clip["arm"]].append(clip)
    columns = [
        name for name in dict.fromkeys(key for clip in clips for key in clip) if name not in NOT_MEASURED
    ]
    lines = [f"| arm, {steps} steps | n | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for arm, group in by_arm.items():
        cells = [
            str(estimate_by_training(_collect(group, column))) if column in group[0] else ""
            for column in columns
        ]
        lines.append(f"| {arm} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare_arms(clips: Sequence[dict], arm: str, other: str, steps: int, column: str) -> Interval:
    """Return the mean difference of two arms, paired by training, prompt and noise, where both have them."""
    measured = [clip for clip in clips if clip["steps"] == steps]
    first, second = (
        _collect([clip for clip in measured if clip["arm"] == name], column) for name in (arm, other)
    )
    return estimate_by_training({key: first[key] - second[key] for key in first if key in second})


def render_differences(clips: Sequence[dict], references: Sequence[str], steps: int, column: str) -> str:
    """Render a Markdown table of a column: each arm's paired difference to those of the reference arms that
    learned the same.
    """
    cases = defaultdict(set)
    for clip in clips:
        cases[clip["arm"]].add(clip["case"])
    rows = [
        f"| {arm} | {other} | {compare_arms(clips, arm, other, steps, column)} |"
        for arm in cases
        for other in references
        if other != arm and cases.get(other) == cases[arm]
    ]
    return "\n".join([f"| arm, {steps} steps | less | {column}, paired |", "|---" * 3 + "|", *rows])


def _collect(clips: Sequence[dict], column: str) -> dict[tuple[str, int, int], float]:
    return {(clip["case"], clip["seed"], clip["clip"]): clip[column] for clip in clips}


def estimate_by_training(values: Mapping[tuple[str, int, int], float]) -> Interval:
    """Return the mean of values by motion, seed and clip, and its 95 % interval over whole trainings."""
    groups = defaultdict(list)
    for (case, seed, _), value in values.items():
        groups[case, seed].append(value)
    return estimate_means([float(np.mean(group)) for group in groups.values()])
