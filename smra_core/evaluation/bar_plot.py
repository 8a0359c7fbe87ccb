"""A chart of horizontal bars drawn with Pillow: groups of bars with a label each, on an axis in percent."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import FAINT_INK, INK, PAPER
from .line_plot import FONT_SIZE, GRID, choose_ticks

WIDTH = 640
"""Width of the picture in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 100, 60, 54, 34
"""Pixels around the bars: labels on the left, title and legend above, ticks below."""
BAR, GAP = 12, 12
"""Height of a bar, and pixels between two groups."""


class BarGroup(NamedTuple):
    """Bars with one label."""

    label: str
    shares: Sequence[float]
    """Length of each bar; 1 is 100 %."""


def draw_bar_plot(
    groups: Sequence[BarGroup], series: Sequence[tuple[str, str]], title: str = ""
) -> Image.Image:
    """Draw groups of bars from top to bottom; `series` holds the name and color of each bar of a group.

    The axis reaches from the least share, at most 0, to the largest one, at least 1.
    """
    shares = [share for group in groups for share in group.shares]
    low, high = min(0.0, *shares), max(1.0, *shares)
    bottom = TOP + len(groups) * (len(series) * BAR + GAP)
    picture = Image.new("RGB", (WIDTH, bottom + BOTTOM), PAPER)
    draw = ImageDraw.Draw(picture)

    def find_x(share: float) -> float:
        return LEFT + (share - low) / (high - low) * (WIDTH - RIGHT - LEFT)

    for tick in choose_ticks(low, high):
        draw.line((find_x(tick), TOP - 4, find_x(tick), bottom), FAINT_INK if abs(tick) < 1e-9 else GRID)
        _write(draw, (find_x(tick), bottom + 5), f"{tick:.0%}", "ma")
    for index, group in enumerate(groups):
        top = TOP + index * (len(series) * BAR + GAP)
        _write(draw, (LEFT - 8, top + len(series) * BAR / 2), group.label, "rm", INK)
        for row, (share, (_, color)) in enumerate(zip(group.shares, series, strict=True)):
            left, right = sorted((find_x(0.0), find_x(share)))
            draw.rectangle((left, top + row * BAR, max(left + 1, right), top + (row + 1) * BAR - 2), color)
            _write(draw, (max(right, left + 1) + 4, top + (row + 0.5) * BAR), f"{share:.0%}", "lm")
    _write(draw, (12, 16), title, "lm", INK)
    _draw_legend(draw, series)
    return picture


def _draw_legend(draw: ImageDraw.ImageDraw, series: Sequence[tuple[str, str]]) -> None:
    x = float(LEFT)
    for name, color in series:
        draw.rectangle((x, 32, x + 12, 44), color)
        _write(draw, (x + 18, 38), name, "lm", INK)
        x += 18 + _load_font().getlength(name) + 24


def _write(
    draw: ImageDraw.ImageDraw, point: tuple[float, float], text: str, anchor: str, color=FAINT_INK
) -> None:
    draw.text(point, text, color, _load_font(), anchor)


def _load_font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT_SIZE)
