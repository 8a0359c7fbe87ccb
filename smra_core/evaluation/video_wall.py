"""All cells of a grid at once: as a contact sheet of one frame, and as a video wall in one MP4."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.video import read_video, read_video_size, write_video
from .axis_name import name_value
from .contact_sheet import LARGEST_SIDE, SheetRow, draw_sheet, save_png, to_sheet_picture

LARGEST_WALL = (3840, 2160)
"""Width and height in pixels that a wall is shrunk to: what players and H.264 take everywhere."""
MOST_FRAMES = 257
"""Frames that are read of a video."""


class Arrangement(NamedTuple):
    """Cells in rows and columns."""

    rows: list[str]
    columns: list[str]
    numbers: list[list[int | None]]
    """Number of the cell in each row and column, or None where there is none."""


def arrange_cells(labels: Sequence[Mapping[str, str]]) -> Arrangement:
    """Arrange cells by their labels: the axis with the most values goes across, the others go down.

    Axes on which all cells have one value are not shown, and a number bears the name of its axis. Raises
    ValueError for no cells.
    """
    if not labels:
        raise ValueError("There are no cells to arrange.")
    axes = {
        axis: list(dict.fromkeys(each.get(axis, "") for each in labels))
        for axis in dict.fromkeys(axis for each in labels for axis in each)
    }
    varying = {axis: values for axis, values in axes.items() if len(values) > 1}
    # The later axis of equals: subjects go down and motions across.
    across = max(reversed(varying), key=lambda axis: len(varying[axis]), default=None)
    down = [axis for axis in varying if axis != across]
    columns = varying[across] if across else [""]
    places = {
        (tuple(each.get(axis, "") for axis in down), each.get(across, "") if across else ""): number
        for number, each in enumerate(labels)
    }
    keys = list(itertools.product(*(varying[axis] for axis in down)))
    numbers = [[places.get((key, column)) for column in columns] for key in keys]
    rows = [", ".join(map(name_value, down, key)) for key in keys]
    return Arrangement(rows, [name_value(across or "", column) for column in columns], numbers)


def read_cell(path: Path) -> Tensor:
    """Read a cell's video `F 3 H W` as 8-bit values, no larger than on a sheet."""
    width, height = read_video_size(path)
    factor = min(1.0, LARGEST_SIDE / max(width, height))
    size = max(2, round(width * factor)), max(2, round(height * factor))
    return (read_video(path, size, MOST_FRAMES).frames * 255).round().to(torch.uint8)


def write_video_wall(
    labels: Sequence[Mapping[str, str]], videos: Sequence[Tensor], path: Path, fps: float, caption: str = ""
) -> None:
    """Write a video in which all cells play side by side, with their names; the shorter ones hold their end.

    `videos` are `F 3 H W` of 8 bits, in the order of the labels.
    """
    arrangement = arrange_cells(labels)
    length = max(map(len, videos))
    pages = (draw_frame(arrangement, videos, number, caption) for number in range(length))
    write_video(path, torch.stack([_to_frame(page) for page in pages]), fps)


def write_grid_sheet(
    labels: Sequence[Mapping[str, str]], videos: Sequence[Tensor], path: Path, caption: str = ""
) -> None:
    """Write a PNG of the middle frame of all cells."""
    middle = max(map(len, videos)) // 2
    save_png(draw_frame(arrange_cells(labels), videos, middle, caption), path)


def draw_frame(arrangement: Arrangement, videos: Sequence[Tensor], number: int, caption: str) -> Image.Image:
    """Draw one frame of all cells on a page with the names of rows and columns."""
    blank = Image.new("RGB", to_sheet_picture(videos[0][0].float() / 255).size, (128, 128, 128))
    rows = [
        SheetRow(name, [_draw_cell(videos[n], number) if n is not None else blank for n in numbers])
        for name, numbers in zip(arrangement.rows, arrangement.numbers, strict=True)
    ]
    return draw_sheet(rows, arrangement.columns, caption)


def _draw_cell(video: Tensor, number: int) -> Image.Image:
    return to_sheet_picture(video[min(number, len(video) - 1)].float() / 255)


def _to_frame(page: Image.Image) -> Tensor:
    """Return a page `3 H W` in [0, 1], shrunk to LARGEST_WALL and to even sides."""
    factor = min(1.0, *(most / side for most, side in zip(LARGEST_WALL, page.size, strict=True)))
    size = [max(2, int(side * factor) // 2 * 2) for side in page.size]
    if factor < 1:
        page = page.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    pixels = np.asarray(page.crop((0, 0, size[0], size[1])))
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255
