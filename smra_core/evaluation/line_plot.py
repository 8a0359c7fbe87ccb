"""A line plot drawn with Pillow: axes with ticks, several lines, step lines, markers and a legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import FAINT_INK, INK, PAPER

FONT_SIZE = 14
"""Height of all letters in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 54, 40
"""Pixels around the axes: tick labels on the left, title and legend above, tick and axis labels below."""
GRID = (226, 229, 233)
TICKS = 5
"""Number of intervals between ticks that is aimed at on each axis."""
MARKER_RADIUS = 2.5
_SUPERSAMPLING = 2
"""Everything but text is drawn this much larger and shrunk, so that slanted lines are smooth."""
_SWATCH, _GAP = 18, 7
"""Pixels of a legend's piece of line, and between it and its text."""

Point = tuple[float, float]
Range = tuple[float, float]
Color = str | tuple[int, int, int]


class Line(NamedTuple):
    """One line of a plot."""

    points: Sequence[Point]
    """(x, y) in the units of the axes. A single point is drawn as a marker."""
    color: Color
    width: float = 2.0
    """Width in pixels."""
    label: str = ""
    """Name in the legend; without one, the line is not listed there."""
    markers: bool = False
    """Whether to draw a dot at every point."""


@dataclass(frozen=True)
class Axes:
    """Ranges of both axes, and the texts and pixels around them."""

    size: tuple[int, int]
    """(width, height) of the whole picture in pixels."""
    x: Range
    y: Range
    title: str = ""
    x_label: str = ""

    def find_pixel(self, point: Point) -> Point:
        """Return where (x, y) in the units of the axes lies in the picture, in pixels from its top left."""
        width, height = self.size
        across, up = (
            (value - low) / (high - low) for value, (low, high) in zip(point, (self.x, self.y), strict=True)
        )
        return LEFT + across * (width - RIGHT - LEFT), height - BOTTOM - up * (height - BOTTOM - TOP)


def draw_line_plot(lines: Sequence[Line], axes: Axes) -> Image.Image:
    """Draw lines over a grid, the first at the bottom; what leaves the range of the axes is not cut off."""
    canvas = Image.new("RGB", (axes.size[0] * _SUPERSAMPLING, axes.size[1] * _SUPERSAMPLING), PAPER)
    draw = ImageDraw.Draw(canvas)
    x_ticks, y_ticks = choose_ticks(*axes.x, whole=True), choose_ticks(*axes.y)
    _draw_grid(draw, axes, x_ticks, y_ticks)
    for line in lines:
        _draw_line(draw, [axes.find_pixel(point) for point in line.points], line)
    legend = [line for line in lines if line.label]
    _draw_swatches(draw, legend)
    plot = canvas.reduce(_SUPERSAMPLING)
    _write_texts(ImageDraw.Draw(plot), axes, x_ticks, y_ticks, legend)
    return plot


def to_steps(points: Sequence[Point]) -> list[Point]:
    """Return the corners of a step line: each y holds from its x until the next point's."""
    corners = list(points[:1])
    for (_, y), following in zip(points, points[1:], strict=False):
        corners += [(following[0], y), following]
    return corners


def pad_range(values: Sequence[float], share: float = 0.05) -> Range:
    """Return the range of some values, widened on both sides by a share of it to keep them off the frame.

    Equal values are put in the middle of a range; without any, it is 0 to 1.
    """
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = share * (high - low) if high > low else 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def choose_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return round values within a range: the multiples of 1, 2 or 5 times a power of ten.

    The interval between them is the one that comes nearest to a TICKS-th of the range, measured as a ratio.
    With `whole` all values are whole numbers.
    """
    wanted = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(wanted))
    intervals = [factor * power for factor in (1, 2, 5, 10)]
    interval = min(intervals, key=lambda length: abs(math.log(length / wanted)))
    interval = max(interval, 1.0) if whole else interval
    first, last = math.ceil(low / interval - 1e-9), math.floor(high / interval + 1e-9)
    return [number * interval for number in range(first, last + 1)]


def format_tick(value: float, interval: float) -> str:
    """Return a tick's value with the decimals that the interval needs, or as a power of ten.

    Powers are for intervals below 0.001 and values from 100000 on: their digits would not fit.
    """
    if abs(value) < 1e-9 * interval:
        return "0"
    if interval < 1e-3 or abs(value) >= 1e5:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value:.{max(0, math.ceil(-math.log10(interval) - 1e-9))}f}"


def _draw_grid(
    draw: ImageDraw.ImageDraw, axes: Axes, x_ticks: Sequence[float], y_ticks: Sequence[float]
) -> None:
    for x in x_ticks:
        _draw_line(draw, [axes.find_pixel((x, y)) for y in axes.y], Line((), GRID, 1))
    for y in y_ticks:
        _draw_line(draw, [axes.find_pixel((x, y)) for x in axes.x], Line((), GRID, 1))
    corners = [axes.find_pixel((axes.x[i], axes.y[j])) for i, j in ((0, 1), (0, 0), (1, 0))]
    _draw_line(draw, corners, Line((), FAINT_INK, 1))


def _draw_line(draw: ImageDraw.ImageDraw, pixels: Sequence[Point], line: Line) -> None:
    """Draw a line in its color and width through pixels of the picture, which replace its own points."""
    large = [(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in pixels]
    draw.line(large, line.color, round(line.width * _SUPERSAMPLING), joint="curve")
    if line.markers or len(large) == 1:
        radius = MARKER_RADIUS * _SUPERSAMPLING
        for x, y in large:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), line.color)


def _list_swatch_edges(legend: Sequence[Line]) -> list[float]:
    """Return the left edge of each entry's swatch in pixels."""
    starts, x = [], float(LEFT)
    for line in legend:
        starts.append(x)
        x += _SWATCH + _GAP + _load_font().getlength(line.label) + 3 * _GAP
    return starts


def _draw_swatches(draw: ImageDraw.ImageDraw, legend: Sequence[Line]) -> None:
    y = TOP - FONT_SIZE
    for line, x in zip(legend, _list_swatch_edges(legend), strict=True):
        _draw_line(draw, [(x, y), (x + _SWATCH, y)], line._replace(markers=False))
        if line.markers:
            _draw_line(draw, [(x + _SWATCH / 2, y)], line)


def _write_texts(
    draw: ImageDraw.ImageDraw,
    axes: Axes,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    legend: Sequence[Line],
) -> None:
    """Write title, legend and ticks at their final size, where Pillow draws letters best."""

    def write(point: Point, text: str, anchor: str, color: Color = FAINT_INK) -> None:
        draw.text(point, text, color, _load_font(), anchor)

    write((LEFT, TOP / 4 + 2), axes.title, "lm", INK)
    for line, x in zip(legend, _list_swatch_edges(legend), strict=True):
        write((x + _SWATCH + _GAP, TOP - FONT_SIZE), line.label, "lm", INK)
    below = axes.size[1] - BOTTOM
    for x, text in _format_ticks(x_ticks):
        write((axes.find_pixel((x, axes.y[0]))[0], below + 5), text, "ma")
    for y, text in _format_ticks(y_ticks):
        write((LEFT - 7, axes.find_pixel((axes.x[0], y))[1]), text, "rm")
    write((axes.size[0] - RIGHT, axes.size[1] - 3), axes.x_label, "rs")


def _format_ticks(ticks: Sequence[float]) -> list[tuple[float, str]]:
    interval = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return [(value, format_tick(value, interval)) for value in ticks]


def _load_font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT_SIZE)
