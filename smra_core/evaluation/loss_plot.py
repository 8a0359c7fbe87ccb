"""Plots of training losses: a panel for each named loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..training.run_folder import read_losses
from .contact_sheet import PAPER, save_png
from .line_plot import Axes, Line, draw_line_plot, pad_range

SMOOTHING = 0.9
"""Weight of the past in the drawn line; the raw values are drawn faintly behind it."""
PANEL_SIZE = (570, 340)
"""(width, height) of a panel of `draw_losses` in pixels."""
RAW_COLOR, SMOOTH_COLOR = "#b7c7dc", "#1f4e8c"


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
    title: str, steps: Sequence[float], losses: Sequence[float], size: tuple[int, int] = PANEL_SIZE
) -> Image.Image:
    """Draw one loss over the steps of a run: pale every step, strong the smoothed line."""
    raw = Line(list(zip(steps, losses, strict=True)), RAW_COLOR, 1, "every step")
    smoothed = Line(list(zip(steps, smooth(losses), strict=True)), SMOOTH_COLOR, 2, "smoothed")
    return draw_line_plot([raw, smoothed], Axes(size, pad_range(steps, 0), pad_range(losses), title, "step"))


def draw_losses(runs: Mapping[str, Path], path: str | Path) -> None:
    """Write a PNG with a row per run (title to losses.csv) and a panel per named loss."""
    rows = []
    for title, file in runs.items():
        columns = read_losses(file)
        steps = columns.pop("step")
        columns.pop("total", None)
        rows.append([draw_loss_panel(f"{title}: {name}", steps, losses) for name, losses in columns.items()])
    save_png(join_panels(rows), path)


def join_panels(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return panels of one size as one picture, row under row; a shorter row ends in white."""
    width, height = rows[0][0].size
    joined = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), PAPER)
    for down, row in enumerate(rows):
        for across, panel in enumerate(row):
            joined.paste(panel, (width * across, height * down))
    return joined
