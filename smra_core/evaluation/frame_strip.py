"""A contact sheet: arms x frames, so that what was sampled can be compared at a glance."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .contact_sheet import SheetRow, chosen, picture, save_png, sheet


def contact_sheet(
    rows: Sequence[tuple[str, Tensor]], path: str | Path, frames: Sequence[int] | int = 6, caption: str = ""
) -> None:
    """Write a PNG of clips, one a row, with the same frames of each as columns.

    A row is (label, clip `F 3 H W` in [0, 1]); a line break in the label starts its note. `frames` are the
    indices to show, or how many, spread evenly from the first to the last of the shortest clip: give indices
    where a motion repeats, for even steps can hide it. ValueError for no rows, or a frame that a clip lacks.
    """
    if not rows:
        raise ValueError("A contact sheet needs at least one row (label, clip), got none.")
    shown = chosen(min(len(clip) for _, clip in rows), frames)
    pictures = [SheetRow(label, [picture(clip[index]) for index in shown]) for label, clip in rows]
    save_png(sheet(pictures, [f"frame {index}" for index in shown], caption), path)
