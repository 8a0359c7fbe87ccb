"""Evaluations of several videos as text and as JSON."""

import json
from collections.abc import Mapping

from .evaluate import EVALUATION_HELP, Evaluation


def render_evaluations(evaluations: Mapping[str, Evaluation]) -> str:
    """Render the metrics of videos, by the video's name: a line for each metric, then what was left out and
    the notes. With several videos, the last column is the mean.
    """
    names = list(evaluations)
    shown = [name for name in EVALUATION_HELP if any(name in one.values for one in evaluations.values())]
    width = max((len(name) for name in shown), default=0)
    columns = [*names, "mean"] if len(names) > 1 else names
    lines = [" " * width + "".join(f"  {column[-16:]:>16}" for column in columns)] if len(names) > 1 else []
    for name in shown:
        values = [one.values.get(name) for one in evaluations.values()]
        measured = [value for value in values if value is not None]
        cells = [*values, sum(measured) / len(measured)] if len(names) > 1 else values
        lines.append(f"{name:<{width}}" + "".join(f"  {_format(value):>16}" for value in cells))
    return "\n".join([*lines, *_describe_rest(evaluations)])


def to_json(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the evaluations as JSON, for scripts: metrics, what was left out, and notes, for each video."""
    content = {
        video: {"metrics": dict(one.values), "left_out": dict(one.left_out), "notes": list(one.notes)}
        for video, one in evaluations.items()
    }
    return json.dumps(content, ensure_ascii=False)


def _describe_rest(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Return sentences on what was left out and on the networks, each once."""
    reasons: dict[str, dict[str, None]] = {}
    for one in evaluations.values():
        for name, reason in one.left_out.items():
            reasons.setdefault(reason, {})[name] = None
    left_out = [f"Left out: {', '.join(names)} ({reason})." for reason, names in reasons.items()]
    notes = dict.fromkeys(f"Note: {note}." for one in evaluations.values() for note in one.notes)
    return [*left_out, *notes]


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
