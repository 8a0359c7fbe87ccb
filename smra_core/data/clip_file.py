"""Read clips of every kind: video files, animated pictures, and numbered pictures in a folder."""

from pathlib import Path

from .crop import Size
from .file_names import fold_name, list_visible_files
from .mask_files import find_masked_name
from .picture import PICTURE_SUFFIXES, read_picture
from .picture_sequence import (
    PictureSequence,
    find_sequence,
    is_animation,
    read_animation,
    read_animation_size,
    read_sequence,
)
from .video import VIDEO_SUFFIXES, Selection, Video, read_video, read_video_size

CLIP_KINDS = f"{', '.join(VIDEO_SUFFIXES)}, GIF, animated WebP"


def list_clips(folder: Path) -> list[str]:
    """List the names of a folder's clips: its videos, or where it has none, its animated pictures.

    Clips that are called like the mask of another one are left out.
    """
    names = list_visible_files(folder)
    clips = [name for name in names if is_video_name(name)]
    clips = clips or [name for name in names if is_animation(folder / name)]
    stems = {fold_name(Path(name).stem) for name in clips}
    return [name for name in clips if find_masked_name(name) not in stems]


def is_video_name(name: str) -> bool:
    """Return whether a file's ending is that of a video."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def read_clip_file(file: Path, size: Size, selection: Selection) -> Video:
    """Read frames of a clip, resized to cover `size` and cropped.

    `file` is a video, an animation, or what `find_sequence` takes for numbered pictures. Raises ValueError,
    with the path, when no frame can be read.
    """
    if is_animation(file):
        return read_animation(file, size, selection)
    sequence = _find_sequence(file)
    return (
        read_video(file, size, *selection) if sequence is None else read_sequence(sequence, size, selection)
    )


def read_clip_size(file: Path) -> Size:
    """Return width and height of a clip's frames in square pixels, turned upright.

    Raises ValueError, with the path, when it has no frame that can be read.
    """
    if is_animation(file):
        return read_animation_size(file)
    sequence = _find_sequence(file)
    return read_video_size(file) if sequence is None else read_picture(sequence.files[0]).rgb.size


def _find_sequence(file: Path) -> PictureSequence | None:
    """Return the numbered pictures at a path; None for a video. ValueError for a folder without any."""
    if file.is_file() and file.suffix.lower() not in PICTURE_SUFFIXES:
        return None
    sequence = find_sequence(file)
    if sequence is None and file.is_dir():
        raise ValueError(f"{file} holds no numbered pictures (0001.png, 0002.png …), at least two.")
    return sequence
