"""Read pictures of one subject, with masks and captions, from a plain folder or by a metadata.csv."""

import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from .crop import Size, check_target, cover_box, describe_crop, fit, to_pixels
from .metadata_table import (
    CAPTION_COLUMNS,
    MASK_COLUMNS,
    PICTURE_COLUMNS,
    find_file_inside,
    find_table,
    read_caption_beside,
    read_table,
)
from .picture import PICTURE_SUFFIXES, read_mask, read_picture

MASK_FOLDER = "masks"


class SubjectImage(NamedTuple):
    """One picture at the training size. Every picture is one training sample."""

    name: str
    """Path relative to the set's folder, with forward slashes."""
    path: Path
    pixels: Tensor
    """`3 H W`, RGB in [0, 1]."""
    mask_px: Tensor | None
    """`1 H W`, 1 on the subject and 0 elsewhere, never empty; None when the set has no mask for the picture.
    """
    caption: str


class SubjectSet(NamedTuple):
    """All pictures of one subject."""

    images: list[SubjectImage]
    notes: list[str]
    """Notes on what was cropped, resized, left out or assumed; each begins with the file's name."""


class _Entry(NamedTuple):
    image: Path
    mask: Path | None
    caption: str


def read_subject_set(
    folder: str | os.PathLike,
    size: Size = (512, 512),
    require_masks: bool = False,
    caption: str | None = None,
) -> SubjectSet:
    """Read the pictures of a subject, resized to cover `size` (width, height) and cropped at the center.

    With a metadata.csv its rows are the set; without one, every picture directly in the folder is. A mask is
    read from the `mask` column, else from `masks/<stem>.*` beside the picture or in the folder, else from the
    picture's own transparency. A caption is `caption` for all pictures, else the table's, else `<stem>.txt`.
    Raises ValueError, naming the file, for anything that cannot be read, leads out of the folder, lacks a
    caption, or has an empty mask.
    """
    check_target(size)
    source = Path(folder)
    table = find_table(source)
    home = table.parent if table else source
    if not home.is_dir():
        raise ValueError(f"{source} is not a folder. Give the folder that holds the subject's pictures.")
    entries = [
        _complete_entry(home, entry, caption)
        for entry in (_read_entries(table) if table else _find_entries(home))
    ]
    notes: list[str] = []
    images = [_read_image(home, entry, size, notes) for entry in entries]
    notes += _list_unused_files(home, entries)
    _check_masks(images, require_masks, notes)
    return SubjectSet(images, notes)


def _read_entries(table: Path) -> list[_Entry]:
    """Read the entries that a table lists."""
    entries = []
    for row in read_table(table, PICTURE_COLUMNS):
        image = row.find_file(PICTURE_COLUMNS)
        if image is None:
            raise ValueError(
                f"{table}, line {row.line} names no picture. Fill in its cell or delete the row."
            )
        entries.append(_Entry(image, row.find_file(MASK_COLUMNS), row.get_cell(CAPTION_COLUMNS)))
    return entries


def _find_entries(folder: Path) -> list[_Entry]:
    """Make an entry for each picture of a plain folder."""
    names = _list_visible_files(folder)
    pictures = [name for name in names if _is_picture(name)]
    if not pictures:
        raise ValueError(
            f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}) and no metadata.csv; seen: "
            f"{names[:8]}. Put the pictures directly into it."
        )
    return [_Entry(find_file_inside(folder, name, str(folder)), None, "") for name in pictures]


def _complete_entry(home: Path, entry: _Entry, caption: str | None) -> _Entry:
    """Add the mask and caption that lie beside a picture where the table gives none."""
    text = (caption or "").strip() or entry.caption or read_caption_beside(home, entry.image)
    if not text:
        raise ValueError(
            f"{entry.image} has no caption. Write one, such as 'A picture of sks dog', into "
            f"{entry.image.with_suffix('.txt').name} or the prompt column of metadata.csv, or give one for "
            "all."
        )
    return _Entry(entry.image, entry.mask or _find_mask_beside(home, entry.image), text)


def _find_mask_beside(home: Path, image: Path) -> Path | None:
    for folder in (image.parent / MASK_FOLDER, home / MASK_FOLDER):
        for name in _list_visible_files(folder):
            if Path(name).stem == image.stem and _is_picture(name):
                return find_file_inside(home, os.path.relpath(folder / name, home), str(home))
    return None


def _read_image(home: Path, entry: _Entry, size: Size, notes: list[str]) -> SubjectImage:
    name, picture = _get_relative_name(home, entry.image), read_picture(entry.image)
    box = cover_box(picture.rgb.size, size)
    cropped = describe_crop(picture.rgb.size, box)
    notes += [f"{name}: {note}" for note in [*picture.notes, cropped] if note]
    mask = _read_full_mask(home, entry, picture.alpha_mask, picture.rgb.size, notes)
    mask_px = None
    if mask is not None:
        mask_px = (to_pixels(fit(mask, size, box)) >= 0.5).float()
        _check_subject_kept(entry.mask or entry.image, name, mask, box, mask_px, notes)
    return SubjectImage(name, entry.image, to_pixels(fit(picture.rgb, size, box)), mask_px, entry.caption)


def _read_full_mask(
    home: Path, entry: _Entry, alpha_mask: Image.Image | None, size: Size, notes: list[str]
) -> Image.Image | None:
    """Read the mask of 0 and 255 at the picture's own size; None when the picture has none."""
    if entry.mask is None:
        if alpha_mask is not None:
            notes.append(f"{_get_relative_name(home, entry.image)}: its transparency serves as the mask")
        return alpha_mask
    mask, mask_notes = read_mask(entry.mask)
    notes += [f"{_get_relative_name(home, entry.mask)}: {note}" for note in mask_notes]
    if mask.size == size:
        return mask
    # A mask of another aspect ratio belongs to another crop or to the picture before it was rotated.
    expected_height = mask.width * size[1] / size[0]
    if abs(mask.height - expected_height) > max(1, 0.01 * expected_height):
        raise ValueError(
            f"The mask {entry.mask} is {mask.width}x{mask.height}, its picture is {size[0]}x{size[1]} "
            "(upright). Give a mask of the same shape, rotated the same way."
        )
    notes.append(
        f"{_get_relative_name(home, entry.mask)}: resized from {mask.width}x{mask.height} to its picture's "
        f"{size[0]}x{size[1]}"
    )
    return mask.resize(size, Image.Resampling.NEAREST)


def _check_subject_kept(
    source: Path, name: str, mask: Image.Image, box, mask_px: Tensor, notes: list[str]
) -> None:
    """Note how much of the subject the crop cuts off; raise ValueError when nothing of it is left."""
    if not mask_px.any():
        raise ValueError(
            f"The mask of {source} has no subject left after resizing and cropping at the center. Crop the "
            "picture around the subject, or paint the mask again."
        )
    left, top, right, bottom = (round(edge) for edge in box)
    subject = to_pixels(mask)
    lost = 1 - (subject[:, top:bottom, left:right].sum() / subject.sum()).item()
    if lost > 1e-6:
        notes.append(f"{name}: the crop cuts off {max(1, round(100 * lost))} % of the subject's mask")


def _list_unused_files(home: Path, entries: list[_Entry]) -> list[str]:
    """List a note for each file in the set's folders that is not part of the set."""
    used = {path.resolve() for entry in entries for path in (entry.image, entry.mask) if path}
    used |= {entry.image.with_suffix(".txt").resolve() for entry in entries}
    folders = dict.fromkeys([home, *(path.parent for entry in entries for path in entry[:2] if path)])
    folders = dict.fromkeys([*folders, home / MASK_FOLDER])
    files = [folder / name for folder in folders for name in _list_visible_files(folder)]
    unused = dict.fromkeys(_get_relative_name(home, file) for file in files if file.resolve() not in used)
    return [f"{name}: not part of the set" for name in unused]


def _check_masks(images: list[SubjectImage], require_masks: bool, notes: list[str]) -> None:
    without_mask = [image.name for image in images if image.mask_px is None]
    if without_mask and require_masks:
        raise ValueError(
            f"{len(without_mask)} of {len(images)} pictures have no mask: {', '.join(without_mask[:8])}. "
            f"Put a mask with the same stem into {MASK_FOLDER}/, fill in the mask column, or let SAM make "
            "the masks."
        )
    notes += [f"{name}: no mask" for name in without_mask]


def _list_visible_files(folder: Path) -> list[str]:
    """List the names of a folder's files, sorted, without hidden files and tables; empty without a folder."""
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if not name.startswith(".") and not name.lower().endswith(".csv")]


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def _get_relative_name(home: Path, path: Path) -> str:
    return Path(os.path.relpath(path, home)).as_posix()
