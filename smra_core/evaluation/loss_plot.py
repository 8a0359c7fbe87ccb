"""Plots of training losses: a panel for each named loss."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..training.held_out import HELD_OUT
from ..training.noise_bands import is_band, split_columns
from ..training.run_folder import read_losses
from .contact_sheet import PAPER, save_png
from .line_plot import Axes, Line, draw_line_plot, pad_range

SMOOTHING = 0.9
"""Weight of the past in the drawn line; the raw values are drawn faintly behind it."""
PANEL_SIZE = (570, 340)
"""(width, height) of a panel of `draw_losses` in pixels."""
RAW_COLOR, SMOOTH_COLOR = "#b7c7dc", "#1f4e8c"
HELD_OUT_COLOR = "#7a3b8f"
BAND_COLORS = ("#2a9d8f", "#e9a23b", "#c8553d")
"""Colors of the bands of noise, from low to high."""


def smooth(values: Sequence[float], past: float = SMOOTHING) -> list[float]:
    """Return the exponential moving average of some values, `past` being the weight of the mean so far.

    The start is corrected as in Adam, so that the first value is its own mean.
    """
    result, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = past * mean + (1 - past) * value, past * weight + (1 - past)
        result.append(mean / weight)
    return result


def draw_loss_panel(
    title: str,
    steps: Sequence[float],
    losses: Sequence[float],
    size: tuple[int, int] = PANEL_SIZE,
    held_out: Sequence[float] = (),
) -> Image.Image:
    """Draw one loss over the steps of a run: pale every step, strong the smoothed line, and with dots that of
    the item that is left out, NaN where it was not measured.
    """
    raw = Line(list(zip(steps, losses, strict=True)), RAW_COLOR, 1, "every step")
    smoothed = Line(list(zip(steps, smooth(losses), strict=True)), SMOOTH_COLOR, 2, "smoothed")
    measured = take_measured(steps, held_out) if held_out else []
    lines = [raw, smoothed, *([Line(measured, HELD_OUT_COLOR, 2, "held out", True)] if measured else [])]
    heights = [*losses, *(loss for _, loss in measured)]
    return draw_line_plot(lines, Axes(size, pad_range(steps, 0), pad_range(heights), title, "step"))


def take_measured(steps: Sequence[float], losses: Sequence[float]) -> list[tuple[float, float]]:
    """Return (step, loss) of the steps that have one."""
    return [(step, loss) for step, loss in zip(steps, losses, strict=True) if not math.isnan(loss)]


def draw_band_panel(
    title: str, steps: Sequence[float], bands: Mapping[str, Sequence[float]], size: tuple[int, int]
) -> Image.Image:
    """Draw the smoothed line of one loss in each band of noise; NaN stands for a step without the band."""
    lines = []
    for (band, losses), color in zip(bands.items(), BAND_COLORS, strict=True):
        there = take_measured(steps, losses)
        means = smooth([loss for _, loss in there])
        points = [(step, mean) for (step, _), mean in zip(there, means, strict=True)]
        lines += [Line(points, color, 2, band)] if points else []
    heights = [y for line in lines for _, y in line.points]
    return draw_line_plot(lines, Axes(size, pad_range(steps, 0), pad_range(heights), title, "step"))


def take_losses(columns: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Return the columns of a run's losses.csv that hold a named loss of every step."""
    return {
        name: values
        for name, values in columns.items()
        if name not in ("step", "total") and not is_band(name) and not name.startswith(HELD_OUT)
    }


def make_loss_rows(
    columns: Mapping[str, Sequence[float]], size: tuple[int, int] = PANEL_SIZE
) -> list[list[Image.Image]]:
    """Return a row with a panel for each named loss of a run, and one with its bands of noise, if they were
    logged.

    `columns` are those of read_losses. The last smoothed value stands in the title of each loss.
    """
    steps, named = columns["step"], take_losses(columns)
    if not steps or not named:
        return [[draw_loss_panel("no step yet", [], [], size)]]
    panels = [
        draw_loss_panel(
            f"{name}: {smooth(values)[-1]:.4g}", steps, values, size, columns.get(HELD_OUT + name, ())
        )
        for name, values in named.items()
    ]
    by_band = [
        draw_band_panel(f"{name} by sigma", steps, bands, size)
        for name, bands in split_columns(columns).items()
    ]
    return [panels, by_band] if by_band else [panels]


def draw_losses(runs: Mapping[str, Path], path: str | Path) -> None:
    """Write a PNG with a row per run (title to losses.csv) and a panel per named loss."""
    rows = []
    for title, file in runs.items():
        columns = read_losses(file)
        panels = take_losses(columns).items()
        rows.append([draw_loss_panel(f"{title}: {name}", columns["step"], losses) for name, losses in panels])
    save_png(join_panels(rows), path)


def join_panels(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return panels of one size as one picture, row under row; a shorter row ends in white."""
    width, height = rows[0][0].size
    joined = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), PAPER)
    for down, row in enumerate(rows):
        for across, panel in enumerate(row):
            joined.paste(panel, (width * across, height * down))
    return joined
