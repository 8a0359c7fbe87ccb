"""Contact sheets: rows and columns of pictures with legible captions, as one image.

The pack bundles no font. Pillow's own draws Latin letters; other letters become boxes.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..storage.atomic_write import write_atomically
from ..wan.latents import to_uint8

SMALLEST_SIDE, LARGEST_SIDE = 192, 384
"""Limits of a picture's longer side on a sheet, in pixels: smaller pictures are enlarged by a whole factor,
larger ones are shrunk.
"""
LABEL_WIDTH, MARGIN, GAP = 280, 28, 8
"""Widths in pixels: of the labels' column, around the sheet, and between pictures."""
CAPTION_SIZE, NAME_SIZE, NOTE_SIZE = 24, 23, 19
"""Font sizes in pixels."""
MOST_LINES, MOST_LETTERS = 6, 1000
"""Limits of one text. A longer text is cut and ends in an ellipsis, so that no text can blow up a sheet."""
LINE_HEIGHT = 1.3
"""Distance between lines of text, in font sizes."""
PAPER, INK, FAINT_INK = (255, 255, 255), (17, 20, 24), (82, 88, 96)


class SheetRow(NamedTuple):
    """One row of a sheet, with a picture per column."""

    label: str
    """Name of the row, and after a line break a note in smaller letters."""
    pictures: Sequence[Image.Image]
    """Pictures at their size on the sheet, from left to right."""


class _Line(NamedTuple):
    """One line of text that fits its column."""

    text: str
    size: int
    """Font size in pixels."""
    color: tuple[int, int, int]

    @property
    def height(self) -> int:
        return round(self.size * LINE_HEIGHT)


def draw_sheet(rows: Sequence[SheetRow], columns: Sequence[str], caption: str) -> Image.Image:
    """Draw rows of pictures with their labels on the left, the column heads above and a caption on top."""
    widths = [
        max(image.width for image in column) for column in zip(*(row.pictures for row in rows), strict=True)
    ]
    labels = [_wrap_label(row.label) for row in rows]
    heights = [
        max(_sum_heights(label), *(image.height for image in row.pictures))
        for label, row in zip(labels, rows, strict=True)
    ]
    left = MARGIN + LABEL_WIDTH
    width = left + sum(widths) + GAP * (len(widths) - 1) + MARGIN
    heading = _wrap_text(caption, CAPTION_SIZE, width - 2 * MARGIN)
    heads = [_wrap_text(text, NOTE_SIZE, room) for text, room in zip(columns, widths, strict=True)]
    head_y = MARGIN + _sum_heights(heading) + (GAP if heading else 0)
    top = head_y + max(_sum_heights(head) for head in heads) + GAP
    page = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) - 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, MARGIN, MARGIN, heading)
    for head, x in zip(heads, _list_starts(left, widths), strict=True):
        _write(draw, x, head_y, head)
    for row, label, y in zip(rows, labels, _list_starts(top, heights), strict=True):
        _write(draw, MARGIN, y, label)
        for image, x in zip(row.pictures, _list_starts(left, widths), strict=True):
            page.paste(image, (x, y))
    return page


def stack_sheets(sheets: Sequence[Image.Image]) -> Image.Image:
    """Put sheets one below the other, aligned on the left, with one margin between them."""
    heights = [sheet.height for sheet in sheets]
    starts = [MARGIN * -index + sum(heights[:index]) for index in range(len(sheets))]
    page = Image.new("RGB", (max(sheet.width for sheet in sheets), starts[-1] + heights[-1]), PAPER)
    for sheet, y in zip(sheets, starts, strict=True):
        page.paste(sheet, (0, y))
    return page


def to_sheet_picture(frame: Tensor) -> Image.Image:
    """Return a frame `3 H W` in [0, 1] at its size on a sheet. Enlarged pixels stay sharp squares."""
    image = Image.fromarray(to_uint8(frame).permute(1, 2, 0).contiguous().cpu().numpy())
    side = max(image.size)
    if side > LARGEST_SIDE:
        return image.resize(_scale_size(image, LARGEST_SIDE / side), Image.Resampling.LANCZOS)
    return image.resize(_scale_size(image, -(-SMALLEST_SIDE // side)), Image.Resampling.NEAREST)


def choose_indices(length: int, wanted: Sequence[int] | int) -> list[int]:
    """Return indices below `length`: the wanted ones, or that many, spread evenly from the first to the last.

    Raise ValueError for no indices, or for one that is negative or not below `length`.
    """
    if isinstance(wanted, int):
        indices = torch.linspace(0, length - 1, max(0, min(wanted, length))).round().int().tolist()
    else:
        indices = list(wanted)
    if not indices or not all(0 <= index < length for index in indices):
        raise ValueError(
            f"Cannot show {wanted} of {length}; give a count above 0, or indices 0 to {length - 1}."
        )
    return indices


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG file in one piece: an interrupted write leaves the old file, never half of the new one."""
    with write_atomically(path) as draft:
        image.save(draft, format="PNG", optimize=True)


def _scale_size(image: Image.Image, factor: float) -> tuple[int, int]:
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def _list_starts(first: int, lengths: Sequence[int]) -> list[int]:
    """Return where each of several lengths begins when they are put side by side with a gap between them."""
    return list(accumulate([length + GAP for length in lengths[:-1]], initial=first))


def _wrap_label(label: str) -> list[_Line]:
    name, _, note = label.partition("\n")
    room = LABEL_WIDTH - MARGIN
    return _wrap_text(name, NAME_SIZE, room) + _wrap_text(note, NOTE_SIZE, room, FAINT_INK)


def _wrap_text(text: str, size: int, room: int, color=INK) -> list[_Line]:
    """Split a text, which may come from an untrusted file, into lines of at most `room` pixels."""
    font = ImageFont.load_default(size)
    lines = [""]
    for piece in _split_words(text, font, room):
        longer = f"{lines[-1]} {piece}".lstrip()
        if font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(piece)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:-3] + "..."]
    return [_Line(line, size, color) for line in lines if line]


def _split_words(text: str, font, room: int) -> Iterator[str]:
    """Yield the printable words of a text; a word that is too long for a line comes in parts."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[:MOST_LETTERS])
    for word in printable.split():
        while font.getlength(word) > room:
            part = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= room)
            yield word[:part]
            word = word[part:]
        yield word


def _sum_heights(lines: Sequence[_Line]) -> int:
    return sum(line.height for line in lines)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[_Line]) -> None:
    for line in lines:
        draw.text((x, y), line.text, fill=line.color, font=ImageFont.load_default(line.size))
        y += line.height


def write_contact_sheet(
    rows: Sequence[tuple[str, Tensor]], path: str | Path, frames: Sequence[int] | int = 6, caption: str = ""
) -> None:
    """Write a PNG of what draw_contact_sheet draws."""
    save_png(draw_contact_sheet(rows, frames, caption), path)


def draw_contact_sheet(
    rows: Sequence[tuple[str, Tensor]], frames: Sequence[int] | int = 6, caption: str = ""
) -> Image.Image:
    """Draw clips, one in each row, with the same frames of all clips as columns.

    A row is (label, clip `F 3 H W` in [0, 1]); a line break in the label starts its note. `frames` are the
    indices of the frames to show, or their number; so many are spread evenly from the first to the last frame
    of the shortest clip. Give indices where a motion repeats, because even steps can hide it. Raise
    ValueError for no rows, or for a frame that a clip lacks.
    """
    if not rows:
        raise ValueError("A contact sheet needs at least one row (label, clip), got none.")
    indices = choose_indices(min(len(clip) for _, clip in rows), frames)
    sheet_rows = [
        SheetRow(label, [to_sheet_picture(clip[index]) for index in indices]) for label, clip in rows
    ]
    return draw_sheet(sheet_rows, [f"frame {index}" for index in indices], caption)
