"""Read all clips of one motion, with captions and masks: one clip, or a folder or table of clips."""

import os
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .clip_file import CLIP_KINDS, list_clips, read_clip_size
from .clip_masks import find_clip_mask, read_clip_masks
from .crop import Size, keep_shape
from .file_names import list_visible_files
from .metadata_table import (
    CAPTION_COLUMNS,
    CAPTION_SUFFIXES,
    VIDEO_COLUMNS,
    find_file_inside,
    find_table,
    read_table,
)
from .motion_clip import MotionClip, check_frame_count, find_caption, name_clip, read_motion_frames
from .picture_sequence import find_sequence
from .video import Selection, Video


class MotionSet(NamedTuple):
    """Clips of one motion."""

    clips: list[MotionClip]
    notes: list[str]
    """Report of the set: a line for each clip that is used, and what was cropped, left out or skipped."""


class _Entry(NamedTuple):
    file: Path
    name: str
    caption: str


def read_motion_set(
    path: str | os.PathLike,
    size: Size,
    selection: Selection,
    caption: str | None = None,
    own_multiple: int | None = None,
    masks: Path | None = None,
) -> MotionSet:
    """Read the clips that a path stands for, as one motion.

    A file is one clip, and so is a folder of numbered pictures. A folder stands for all rows of its
    metadata.csv or metadata.jsonl, or for all its videos when it has no table. Every clip is resized to cover
    `size` (width, height) and cropped; with `own_multiple` each keeps its own shape, with at most as many
    pixels, and sides that are multiples of that number. Clips may have different lengths: `selection.frames`
    is the most, and each is trimmed to 4n+1. `masks` is a folder with a mask for each clip, or one clip's
    mask; it is white where the clip does not count.

    A clip that cannot be read or has fewer than 5 frames is skipped with a note if others are left. Raises
    ValueError, naming the file, when none is left, when a caption is missing, and for a file that is not
    there or leads out of its folder.
    """
    check_frame_count(selection.frames)
    entries = _list_entries(Path(path), (caption or "").strip())
    mask_files = _find_masks(entries, masks)
    clips: list[MotionClip] = []
    notes: list[str] = []
    errors: list[ValueError] = []
    for entry, mask in zip(entries, mask_files, strict=True):
        try:
            clip_size = size if own_multiple is None else _choose_own_size(entry, size, own_multiple)
            video = read_motion_frames(entry.file, clip_size, selection)
        except ValueError as error:
            errors.append(error)
            notes.append(f"{entry.name} is skipped: {error}")
            continue
        exclude_px, mask_notes = _read_exclusion(mask, entry, video, clip_size)
        if masks is not None and mask is None:
            mask_notes = [f"it has no mask in {masks}, and all of it counts"]
        clip_notes = [f"{entry.name}: {note}" for note in (*video.notes, *mask_notes)]
        clip = MotionClip(
            entry.name, entry.file, video.frames, entry.caption, video.fps, clip_notes, exclude_px
        )
        clips.append(clip)
        notes += [describe_clip(clip), *clip_notes]
    if not clips:
        raise errors[0]
    return MotionSet(clips, notes + _list_unused_files(Path(path), entries))


def _list_unused_files(path: Path, entries: list[_Entry]) -> list[str]:
    """Return a note for each file of the set's folder that is no part of it, but for captions."""
    table = find_table(path)
    if table is None and (not path.is_dir() or entries[0].file == path):  # one file, or numbered pictures
        return []
    folder = table.parent if table else path
    used = {entry.file.resolve() for entry in entries}
    return [
        f"{name}: not part of the set"
        for name in list_visible_files(folder)
        if (folder / name).resolve() not in used and Path(name).suffix.lower() not in CAPTION_SUFFIXES
    ]


def _choose_own_size(entry: _Entry, most: Size, multiple: int) -> Size:
    return keep_shape(read_clip_size(entry.file), most, multiple)


def _read_exclusion(
    mask: Path | None, entry: _Entry, video: Video, size: Size
) -> tuple[Tensor | None, list[str]]:
    if mask is None:
        return None, []
    exclude_px, notes = read_clip_masks(mask, entry.file, video, size)
    share = 100 * exclude_px.mean().item()
    return exclude_px, [*notes, f"its mask {mask.name} leaves out {share:.0f} % of the clip"]


def describe_clip(clip: MotionClip) -> str:
    """Return what a clip is: frames, size and caption."""
    frames, _, height, width = clip.frames.shape
    return f"{clip.name}: {frames} frames of {width}x{height}, {clip.caption!r}"


def _list_entries(path: Path, caption: str) -> list[_Entry]:
    """List the clips at a path with their captions; ValueError for what is not there or has no caption."""
    table = find_table(path)
    if table:
        return _list_rows(table, caption)
    names = list_clips(path) if path.is_dir() else []
    if names:
        files = [find_file_inside(path, name, str(path)) for name in names]
        # A single clip is called as one that is given as a file is.
        return [
            _Entry(file, name_clip(file) if len(files) == 1 else file.name, caption or find_caption(file))
            for file in files
        ]
    if path.is_file() or find_sequence(path):
        return [_Entry(path, name_clip(path), caption or find_caption(path))]
    if path.is_dir():
        raise ValueError(
            f"{path} holds no clip ({CLIP_KINDS}), no numbered pictures and no metadata.csv or .jsonl; "
            f"seen: {list_visible_files(path)[:8]}. Give the folder of one motion, or a video file."
        )
    raise ValueError(
        f"{path} does not exist. Give a video file, a folder of videos or of numbered pictures, or a "
        "metadata.csv or metadata.jsonl."
    )


def _list_rows(table: Path, caption: str) -> list[_Entry]:
    entries = []
    for row in read_table(table, VIDEO_COLUMNS):
        file = row.find_file(VIDEO_COLUMNS)
        if file is None:
            raise ValueError(f"{table}, line {row.line} names no video. Fill in its cell or delete the row.")
        name = Path(os.path.relpath(file, os.path.abspath(table.parent))).as_posix()
        entries.append(_Entry(file, name, caption or row.get_cell(CAPTION_COLUMNS) or find_caption(file)))
    return entries


def _find_masks(entries: list[_Entry], masks: Path | None) -> list[Path | None]:
    """Find the mask of each clip; ValueError when the masks are not there or belong to none of the clips."""
    if masks is None:
        return [None] * len(entries)
    if not masks.exists():
        raise ValueError(
            f"The masks {masks} do not exist. Give a folder with a mask for each clip, or one mask."
        )
    is_one_mask = masks.is_file() or (len(entries) == 1 and find_sequence(masks) is not None)
    if is_one_mask:
        return [masks] * len(entries)
    found = [find_clip_mask(masks, entry.file) for entry in entries]
    if not any(found):
        raise ValueError(
            f"{masks} holds no mask of these clips: no video, picture or folder of pictures is called as "
            f"{', '.join(entry.file.stem for entry in entries[:4])}. Call each mask as its clip."
        )
    return found
