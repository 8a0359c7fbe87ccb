"""The report page of a grid: one HTML file with the videos, a table of metrics and a blind vote."""

import base64
import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ..storage.atomic_write import write_atomically
from .axis_name import name_value

TEMPLATE = Path(__file__).with_name("grid_page.html")
MOST_EMBEDDED = 200_000_000
"""Bytes of videos up to which the page holds them itself. A larger grid's page plays the files beside it."""
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Quantiles 0.975 of Student's t distribution for 1 to 10 degrees of freedom."""
_MANY = {15: 2.131, 20: 2.086, 30: 2.042}
_KINDS = {".webm": "video/webm"}


@dataclass(frozen=True)
class GridCell:
    """One video of a grid."""

    labels: Mapping[str, str]
    """Value on each axis, such as subject -> ball."""
    video: Path
    note: str = ""
    """Text under the name, such as the prompt."""
    metrics: Mapping[str, float] = field(default_factory=dict)


class Interval(NamedTuple):
    """Mean of values, and the interval that holds the true mean with 95 %; None where there is one value."""

    mean: float
    low: float | None
    high: float | None


def find_interval(values: Sequence[float]) -> Interval:
    """Return mean and 95 % interval of values, by Student's t distribution."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = choose_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def choose_quantile(freedom: int) -> float:
    """Return Student's t at 0.975; between two entries of the table the wider one."""
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    return next((_MANY[least] for least in sorted(_MANY, reverse=True) if freedom >= least), _QUANTILES[-1])


def write_grid_page(
    path: Path,
    title: str,
    cells: Sequence[GridCell],
    fixed_axes: Sequence[str] = ("prompt", "seed"),
    introduction: Sequence[str] = (),
    metric_help: Mapping[str, str] | None = None,
) -> None:
    """Write the page.

    `fixed_axes` are averaged over in the table, and are the same in both videos of a vote. The videos are
    inside of the page up to MOST_EMBEDDED bytes; above it they are referred to, relative to the page.
    Nothing in names, prompts or the title is read as HTML. Raises ValueError for no cells.
    """
    if not cells:
        raise ValueError("A report page needs at least one cell.")
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.labels))
    sizes = sum(cell.video.stat().st_size for cell in cells)
    is_embedded, more = sizes <= MOST_EMBEDDED, []
    if not is_embedded:
        more = [f"The videos ({sizes / 1e6:.0f} MB) are in the files beside this page; move them together."]
    names = dict.fromkeys(name for cell in cells for name in cell.metrics)
    varying = [axis for axis in axes if len({cell.labels.get(axis) for cell in cells}) > 1]
    row_axes = [axis for axis in varying if axis not in fixed_axes]
    data = {
        "title": title,
        "key": _hash_names(title, cells),
        "introduction": [*introduction, *more],
        "axes": axes,
        "row_axes": row_axes,
        "fixed_axes": [axis for axis in axes if axis in fixed_axes],
        "metrics": [{"name": name, "help": (metric_help or {}).get(name, "")} for name in names],
        "cells": list(_list_cells(cells, axes, path.parent if not is_embedded else None)),
        "rows": list(list_rows(cells, row_axes)),
    }
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), data=_to_script(data)
    )
    with write_atomically(path) as draft:
        draft.write_text(page, encoding="utf-8")


def list_rows(cells: Sequence[GridCell], row_axes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """List the rows of the table: mean and interval of each metric over the cells that share the axes."""
    groups: dict[tuple[str, ...], list[GridCell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.labels.get(axis, "") for axis in row_axes), []).append(cell)
    for key, group in groups.items():
        names = dict.fromkeys(name for cell in group for name in cell.metrics)
        values = {name: [cell.metrics[name] for cell in group if name in cell.metrics] for name in names}
        finite = {name: [value for value in each if math.isfinite(value)] for name, each in values.items()}
        yield {
            "labels": dict(zip(row_axes, key, strict=True)),
            "count": len(group),
            "metrics": {name: find_interval(each) for name, each in finite.items() if each},
        }


def _list_cells(
    cells: Sequence[GridCell], axes: Sequence[str], folder: Path | None
) -> Iterator[dict[str, Any]]:
    """List what the page needs of each cell; with a folder, videos as paths relative to it."""
    shown = [axis for axis in axes if len({cell.labels.get(axis) for cell in cells}) > 1] or list(axes)
    for cell in cells:
        yield {
            "id": cell.video.stem,
            "name": ", ".join(name_value(axis, cell.labels[axis]) for axis in shown if axis in cell.labels),
            "note": cell.note,
            "labels": dict(cell.labels),
            "video": _embed(cell.video) if folder is None else _make_link(cell.video, folder),
        }


def _embed(video: Path) -> str:
    kind = _KINDS.get(video.suffix.lower(), "video/mp4")
    return f"data:{kind};base64,{base64.b64encode(video.read_bytes()).decode('ascii')}"


def _make_link(video: Path, folder: Path) -> str:
    from urllib.parse import quote

    return quote(video.resolve().relative_to(folder.resolve()).as_posix())


def _hash_names(title: str, cells: Sequence[GridCell]) -> str:
    """Return a key for votes: those on other cells are kept apart."""
    names = "\n".join([title, *sorted(cell.video.stem for cell in cells)])
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def _to_script(data: Any) -> str:
    """Return JSON that cannot end the script element that it stands in, nor begin a comment there."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
