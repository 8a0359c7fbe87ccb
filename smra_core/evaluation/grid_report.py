"""What a grid leaves for people: a page with all videos, and a wall and a sheet of not too many."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .evaluate import EVALUATION_HELP
from .grid_page import GridCell, write_grid_page
from .video_wall import read_cell, write_grid_sheet, write_video_wall

FIXED_AXES = ("prompt", "seed")
MOST_ON_A_WALL = 64
"""Cells up to which there are a wall and a sheet: of more, nobody sees anything."""
TOO_MANY = "They are too many for a video wall and a contact sheet; the page has them."


class GridReport(NamedTuple):
    """Files of a grid, for people."""

    page: Path
    wall: Path | None
    sheet: Path | None


def write_report(
    folder: Path, title: str, cells: Sequence[GridCell], introduction: Sequence[str], fps: float
) -> GridReport:
    """Write the page of these cells to a folder and, of at most MOST_ON_A_WALL, the wall and the sheet.

    `introduction` stands at the top of the page; `fps` is the frame rate of the wall. Raises ValueError for
    no cells.
    """
    page, wall, sheet = folder / "report.html", folder / "wall.mp4", folder / "sheet.png"
    write_grid_page(page, title, cells, FIXED_AXES, introduction, EVALUATION_HELP)
    if len(cells) > MOST_ON_A_WALL:
        return GridReport(page, None, None)
    labels, videos = [cell.labels for cell in cells], [read_cell(cell.video) for cell in cells]
    write_grid_sheet(labels, videos, sheet, title)
    write_video_wall(labels, videos, wall, fps, title)
    return GridReport(page, wall, sheet)
