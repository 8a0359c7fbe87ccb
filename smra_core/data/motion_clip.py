"""Read the reference clip of one motion and its caption from a video file, a folder, or a metadata.csv."""

import os
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..wan.spec import latent_frames
from .clip_file import CLIP_KINDS, list_clips, read_clip_file
from .crop import Size
from .file_names import list_visible_files
from .frame_rate import WAN_FPS
from .metadata_table import (
    CAPTION_COLUMNS,
    VIDEO_COLUMNS,
    Row,
    find_file_inside,
    find_table,
    read_caption_beside,
    read_table,
)
from .picture_sequence import find_sequence
from .video import Selection, Video, trim_video

FEWEST_FRAMES = 5
"""Frames of two latents, the shortest clip that has motion."""


class MotionClip(NamedTuple):
    """One clip at the training size."""

    name: str
    path: Path
    frames: Tensor
    """`F 3 H W`, RGB in [0, 1], F = 4n+1."""
    caption: str
    fps: float
    notes: list[str]
    """Notes on what was cropped, trimmed, left out or assumed; each begins with the file's name."""
    exclude_px: Tensor | None = None
    """Mask `F 1 H W`, 1 where the clip does not count and 0 elsewhere; None where all of it counts."""
    is_color_copy: bool = False
    """Whether it is the clip before it in other colors (see color_copies), and moves as that one does."""


def read_motion_clip(
    path: str | os.PathLike,
    size: Size = (576, 320),
    frames: int = 49,
    start: int = 0,
    stride: int = 1,
    caption: str | None = None,
    fps: float | None = WAN_FPS,
) -> MotionClip:
    """Read `frames` frames from number `start`, every `stride`-th, resized to cover `size` (width, height).

    The clip is brought to `fps` frames per second first, by the times of its frames, so that the motion keeps
    its speed; None takes the frames as they are. Steady clips within 5 % of that rate, slower ones, and ones
    of unknown rate are taken frame by frame. Clips are video files, GIF, animated WebP, PNG and AVIF, and
    numbered pictures. A folder stands for the first row of its metadata.csv, or for its first video when it
    has no table, or for its numbered pictures. A shorter clip is trimmed to 4n+1 frames with a note. The
    caption is `caption`, else the table's, else `<stem>.txt`, else a row about this file in a metadata.csv
    beside it or one folder up. Raises ValueError, naming the file, when it cannot be read, leads out of its
    folder, has fewer than 5 frames, or has no caption.
    """
    check_frame_count(frames)
    file, row, notes = _choose_video(Path(path))
    text = (caption or "").strip() or (row and row.get_cell(CAPTION_COLUMNS)) or find_caption(file)
    video = read_motion_frames(file, size, Selection(frames, start, stride, fps))
    notes += [f"{file.name}: {note}" for note in video.notes]
    return MotionClip(name_clip(file), file, video.frames, text, video.fps, notes)


def read_motion_frames(file: Path, size: Size, selection: Selection) -> Video:
    """Read the selected frames of a clip, trimmed to 4n+1. Raises ValueError when there are fewer than 5."""
    video = read_clip_file(file, size, selection)
    if len(video.frames) < FEWEST_FRAMES:
        raise ValueError(
            f"{file} gives {len(video.frames)} frames from number {selection.start} at stride "
            f"{selection.stride}; a motion needs at least {FEWEST_FRAMES}. Choose a longer clip, an earlier "
            "start, a smaller stride, or its frames as they are."
        )
    return trim_video(video, selection.frames)


def check_frame_count(frames: int) -> None:
    """Raise ValueError unless so many frames hold a motion, and are 4n+1."""
    if frames < FEWEST_FRAMES:
        raise ValueError(
            f"A motion needs at least {FEWEST_FRAMES} frames, got {frames}. Ask for more; the paper's clips "
            "have 49."
        )
    latent_frames(frames)


def name_clip(file: Path) -> str:
    """Return the stem of a file, or the folder's name for a pattern of numbered pictures."""
    return file.stem if file.exists() else file.parent.name


def _choose_video(path: Path) -> tuple[Path, Row | None, list[str]]:
    """Return the video at a path, its row in a table, and notes on the videos that are not used."""
    table = find_table(path)
    if table:
        return _choose_first_row(table)
    if path.is_dir():
        return _choose_first_video(path)
    if path.is_file() or find_sequence(path):
        return path, None, []
    raise ValueError(
        f"{path} does not exist. Give a video file, a folder with one or with numbered pictures, or a "
        "metadata.csv."
    )


def _choose_first_row(table: Path) -> tuple[Path, Row, list[str]]:
    row, *others = read_table(table, VIDEO_COLUMNS)
    file = row.find_file(VIDEO_COLUMNS)
    if file is None:
        raise ValueError(f"{table}, line {row.line} names no video. Fill in its cell or delete the row.")
    notes = [
        f"{table.name}, line {other.line}: {other.get_cell(VIDEO_COLUMNS)} is not used" for other in others
    ]
    return file, row, notes


def _choose_first_video(folder: Path) -> tuple[Path, None, list[str]]:
    videos = list_clips(folder)
    if videos:
        notes = [f"{name}: not used, the first video is" for name in videos[1:]]
        return find_file_inside(folder, videos[0], str(folder)), None, notes
    if find_sequence(folder):
        return folder, None, []
    raise ValueError(
        f"{folder} holds no video ({CLIP_KINDS}), no numbered pictures and no metadata.csv; seen: "
        f"{list_visible_files(folder)[:8]}. Give the folder of one motion, or the video file."
    )


def find_caption(file: Path) -> str:
    """Return the caption beside a clip, or in a table's row about it. Raises ValueError without one."""
    caption = read_caption_beside(file.parent, file)
    if caption:
        return caption
    for folder in (file.parent, file.parent.parent):
        table = find_table(folder)
        rows = read_table(table, VIDEO_COLUMNS) if table else []
        for row in rows:
            if row.is_about(VIDEO_COLUMNS, file) and row.get_cell(CAPTION_COLUMNS):
                return row.get_cell(CAPTION_COLUMNS)
    raise ValueError(
        f"{file} has no caption. Give one, such as 'a person is vvt walking', or write it into "
        f"{file.with_suffix('.txt').name} or the prompt column of a metadata.csv beside the video."
    )
