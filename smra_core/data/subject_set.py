"""Read pictures of one subject, with masks and captions, from a plain folder or by a metadata.csv."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from .clip_file import is_video_name
from .crop import (
    Size,
    check_target,
    cover_box,
    describe_crop,
    describe_enlargement,
    fit,
    has_same_shape,
    keep_shape,
    to_pixels,
)
from .file_names import list_visible_files
from .mask_check import describe_mask, may_be_mask
from .mask_files import (
    MASK_FOLDER,
    describe_unread_folders,
    find_mask_beside,
    list_mask_folders,
    select_pictures,
)
from .metadata_table import (
    CAPTION_COLUMNS,
    MASK_COLUMNS,
    PICTURE_COLUMNS,
    find_caption_beside,
    find_file_inside,
    find_table,
    read_caption_beside,
    read_table,
)
from .picture import PICTURE_SUFFIXES, Picture, read_mask, read_picture, rotate_as_stored
from .subject_clip import SubjectClip, find_masks_of_clip, find_subject_clips, read_subject_clip
from .video import Selection

_SAMPLED = (256, 256)
"""Pixels of a picture at which its colors are looked at, without mixing neighbors."""


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

    @property
    def frames(self) -> Tensor:
        """The picture as a clip of one frame, `1 3 H W`."""
        return self.pixels[None]

    @property
    def masks_px(self) -> Tensor | None:
        """The mask as that of a clip, `1 1 H W`."""
        return None if self.mask_px is None else self.mask_px[None]


class SubjectSet(NamedTuple):
    """All pictures and clips of one subject."""

    images: list[SubjectImage]
    notes: list[str]
    """Notes on what was cropped, resized, left out or assumed; each begins with the file's name."""
    clips: list[SubjectClip] = []  # noqa: RUF012 - a named tuple's default
    """Clips with their masks; empty unless they are asked for."""


class _Entry(NamedTuple):
    image: Path
    mask: Path | None
    caption: str


def read_subject_set(
    folder: str | os.PathLike,
    size: Size = (512, 512),
    require_masks: bool = False,
    caption: str | None = None,
    clips: Selection | None = None,
    own_multiple: int | None = None,
) -> SubjectSet:
    """Read the pictures of a subject, resized to cover `size` (width, height) and cropped at the center.

    With a metadata.csv its rows are the set; without one, every picture directly in the folder is. A mask is
    read from the `mask` column, else from `masks/<stem>.*` beside the picture or in the folder, else from a
    file beside the picture that is called like a mask (`mask_files.find_mask_beside` has the names), else
    from the picture's own transparency. A caption is `caption` for all pictures, else the table's, else
    `<stem>.txt`. With `clips`, which says what is read of each, the set's videos are read as well (see
    `subject_clip`); videos without masks are left out with a note. With `own_multiple` each picture and clip
    keeps its own shape (see `keep_shape`). Raises ValueError, naming the file, for anything that cannot be
    read, leads out of the folder, lacks a caption, or has an empty mask.
    """
    check_target(size)
    source = Path(folder)
    table = find_table(source)
    home = table.parent if table else source
    if not home.is_dir():
        raise ValueError(f"{source} is not a folder. Give the folder that holds the subject's pictures.")
    notes: list[str] = []
    clip_files = [] if table or clips is None else _find_clips(home, notes)
    found = _read_entries(table) if table else _find_entries(home, clip_files)
    entries = [_complete_entry(home, entry, caption) for entry in found]
    pictures = [entry for entry in entries if clips is None or not is_video_name(entry.image.name)]
    images = [_read_image(home, entry, size, own_multiple, notes) for entry in pictures]
    read_clips = []
    for entry in entries:
        if clips is not None and entry not in pictures:
            clip, clip_notes = read_subject_clip(home, *entry, size, clips, own_multiple)
            read_clips.append(clip)
            notes += clip_notes
    notes += _find_equal_stems(home, pictures) + _list_unused_files(home, entries)
    _check_masks(images, require_masks, notes)
    return SubjectSet(images, notes, read_clips)


def _find_clips(home: Path, notes: list[str]) -> list[Path]:
    files, clip_notes = find_subject_clips(home)
    notes += clip_notes
    return files


def describe_new_masks(
    before: Sequence[SubjectImage | SubjectClip], after: Sequence[SubjectImage | SubjectClip]
) -> list[str]:
    """Return what the masks cover that SAM found for pictures without one."""
    return [
        f"{image.name}: the mask that SAM found {describe_mask(image.masks_px[0, 0])}"
        for earlier, image in zip(before, after, strict=True)
        if earlier.masks_px is None and image.masks_px is not None
    ]


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


def _find_entries(folder: Path, clips: list[Path]) -> list[_Entry]:
    """Make an entry for each picture of a plain folder, and for each of the clips."""
    names = list_visible_files(folder)
    clip_names = {clip.name for clip in clips}
    pictures = select_pictures([name for name in names if name not in clip_names])
    if not pictures and not clips:
        raise ValueError(
            f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)}) and no metadata.csv; seen: "
            f"{names[:8]}. Put the pictures directly into it."
        )
    files = [find_file_inside(folder, name, str(folder)) for name in pictures]
    return [_Entry(file, None, "") for file in (*files, *clips)]


def _complete_entry(home: Path, entry: _Entry, caption: str | None) -> _Entry:
    """Add the mask and caption that lie beside a picture where the table gives none."""
    text = (caption or "").strip() or entry.caption or read_caption_beside(home, entry.image)
    if not text:
        raise ValueError(
            f"{entry.image} has no caption. Write one, such as 'A picture of sks dog', into "
            f"{entry.image.with_suffix('.txt').name} or the prompt column of metadata.csv, or give one for "
            "all."
        )
    find_mask = find_masks_of_clip if is_video_name(entry.image.name) else find_mask_beside
    return _Entry(entry.image, entry.mask or find_mask(home, entry.image), text)


def _read_image(
    home: Path, entry: _Entry, size: Size, own_multiple: int | None, notes: list[str]
) -> SubjectImage:
    name, picture = _get_relative_name(home, entry.image), read_picture(entry.image)
    if own_multiple is not None:
        size = keep_shape(picture.rgb.size, size, own_multiple)
    box = cover_box(picture.rgb.size, size)
    fitted = (describe_crop(picture.rgb.size, box), describe_enlargement(box, size))
    notes += [f"{name}: {note}" for note in (*picture.notes, *fitted) if note]
    mask = _read_full_mask(home, entry, picture, notes)
    mask_px = None
    if mask is not None:
        source = f"its mask {_get_relative_name(home, entry.mask)}" if entry.mask else "its opaque part"
        notes.append(f"{name}: {source} {describe_mask(to_pixels(mask)[0])}")
        mask_px = (to_pixels(fit(mask, size, box)) >= 0.5).float()
        _check_subject_kept(entry.mask or entry.image, name, mask, box, mask_px, notes)
    pixels = to_pixels(fit(picture.rgb, size, box))
    if may_be_mask(to_pixels(picture.rgb.resize(_SAMPLED, Image.Resampling.NEAREST))):
        notes.append(
            f"{name}: holds black and white alone. If it is a mask, move it to {MASK_FOLDER}/ and give it "
            "its picture's name"
        )
    return SubjectImage(name, entry.image, pixels, mask_px, entry.caption)


def _read_full_mask(home: Path, entry: _Entry, picture: Picture, notes: list[str]) -> Image.Image | None:
    """Read the mask of 0 and 255 at the picture's own size; None when the picture has none."""
    if entry.mask is None:
        if picture.alpha_mask is not None:
            notes.append(f"{_get_relative_name(home, entry.image)}: its transparency serves as the mask")
        return picture.alpha_mask
    mask, mask_notes = read_mask(entry.mask)
    mask, turned = _rotate_with_picture(mask, picture)
    name = _get_relative_name(home, entry.mask)
    notes += [f"{name}: {note}" for note in (*mask_notes, turned) if note]
    size = picture.rgb.size
    if mask.size == size:
        return mask
    # A mask of another aspect ratio belongs to another crop or to the picture before it was rotated.
    if not has_same_shape(mask.size, size):
        raise ValueError(
            f"The mask {entry.mask} is {mask.width}x{mask.height}, its picture is {size[0]}x{size[1]} "
            "(upright). Give a mask of the same shape, rotated the same way."
        )
    notes.append(f"{name}: resized from {mask.width}x{mask.height} to its picture's {size[0]}x{size[1]}")
    return mask.resize(size, Image.Resampling.NEAREST)


def _rotate_with_picture(mask: Image.Image, picture: Picture) -> tuple[Image.Image, str | None]:
    """Turn a mask that has the shape of the picture as it is stored, and say what the mask was taken for."""
    if picture.orientation == 1:
        return mask, None
    turned, size = rotate_as_stored(mask, picture.orientation), picture.rgb.size
    if not has_same_shape(mask.size, size) and has_same_shape(turned.size, size):
        return turned, "turned as its picture's EXIF orientation says"
    if has_same_shape(turned.size, size):
        return mask, (
            f"its picture is turned by its EXIF orientation ({picture.orientation}); the mask is taken as "
            "upright"
        )
    return mask, None


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
    captions = (find_caption_beside(entry.image) for entry in entries)
    used |= {caption.resolve() for caption in captions if caption}
    folders = dict.fromkeys([home, *(path.parent for entry in entries for path in entry[:2] if path)])
    folders = dict.fromkeys([*folders, *list_mask_folders(*folders)])
    files = [folder / name for folder in folders for name in list_visible_files(folder)]
    unused = dict.fromkeys(_get_relative_name(home, file) for file in files if file.resolve() not in used)
    read = used | {folder.resolve() for folder in folders}
    has_masks = any(entry.mask for entry in entries)
    return [f"{name}: not part of the set" for name in unused] + describe_unread_folders(
        home, read, has_masks
    )


def _find_equal_stems(home: Path, entries: list[_Entry]) -> list[str]:
    """Return a note on pictures whose names differ in their ending alone, as one may be the other's mask."""
    by_stem: dict[Path, list[str]] = {}
    for entry in entries:
        by_stem.setdefault(entry.image.with_suffix(""), []).append(entry.image.name)
    return [
        f"{' and '.join(names)} are both pictures of the set. If one is the mask of the other, move it to "
        f"{MASK_FOLDER}/."
        for names in by_stem.values()
        if len(names) > 1
    ]


def _check_masks(images: list[SubjectImage], require_masks: bool, notes: list[str]) -> None:
    without_mask = [image.name for image in images if image.mask_px is None]
    if without_mask and require_masks:
        raise ValueError(
            f"{len(without_mask)} of {len(images)} pictures have no mask: {', '.join(without_mask[:8])}. "
            f"Put a mask with the same stem into {MASK_FOLDER}/, fill in the mask column, or let SAM make "
            "the masks."
        )
    notes += [f"{name}: no mask" for name in without_mask]


def _get_relative_name(home: Path, path: Path) -> str:
    return Path(os.path.relpath(path, home)).as_posix()
