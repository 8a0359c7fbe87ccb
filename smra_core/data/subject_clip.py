"""Read a clip of a subject with a mask for each frame."""

import os
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .clip_file import is_video_name, list_clips, read_clip_file, read_clip_size
from .clip_masks import find_clip_mask, read_clip_masks
from .crop import Size, keep_shape
from .mask_files import MASK_FOLDER, list_mask_folders
from .metadata_table import find_file_inside
from .video import Selection, trim_video

CLIP_FRAMES = 17
"""Most frames of a subject's clip: at 512x512 half as many tokens as the paper's clip of a motion has."""


class SubjectClip(NamedTuple):
    """One clip of a subject at the training size. Every clip is one training sample."""

    name: str
    """Path relative to the set's folder, with forward slashes."""
    path: Path
    frames: Tensor
    """`F 3 H W`, RGB in [0, 1], F = 4n+1."""
    masks_px: Tensor | None
    """`F 1 H W`, 1 on the subject and 0 elsewhere; never 0 in all frames. None without a mask."""
    caption: str


def find_subject_clips(home: Path) -> tuple[list[Path], list[str]]:
    """Return the clips of a subject's folder that have masks, and notes on those that have none."""
    files = [find_file_inside(home, name, str(home)) for name in list_clips(home) if is_video_name(name)]
    masked = [file for file in files if find_masks_of_clip(home, file) is not None]
    notes = [
        f"{file.name}: a clip without masks, which is not part of the set. Put masks of its frames into "
        f"{MASK_FOLDER}/{file.stem}/, numbered"
        for file in files
        if file not in masked
    ]
    return masked, notes


def find_masks_of_clip(home: Path, file: Path) -> Path | None:
    """Return the masks of a subject's clip: a video, a picture, or a folder of numbered pictures.

    They have the clip's name in a folder of masks, or lie beside the clip with a mask's name
    (`walk_mask.mp4`). None where there are none. Raises ValueError when they lead out of their folder.
    """
    folders = (*list_mask_folders(file.parent, home), file.parent)
    return next(filter(None, (find_clip_mask(folder, file) for folder in folders)), None)


def read_subject_clip(
    home: Path,
    file: Path,
    mask: Path | None,
    caption: str,
    size: Size,
    selection: Selection,
    own_multiple: int | None = None,
) -> tuple[SubjectClip, list[str]]:
    """Read a clip of a subject with its masks, trimmed to 4n+1 frames, and notes on what was done.

    It is resized to cover `size` and cropped, or with `own_multiple` keeps its own shape (see `keep_shape`).
    Raises ValueError, naming the file, when it or its mask cannot be read, or when the masks are empty.
    """
    if mask is None:
        raise ValueError(
            f"{file} is a clip without masks. Put masks of its frames, white on the subject, into "
            f"{MASK_FOLDER}/{file.stem}/, numbered, or as a video {MASK_FOLDER}/{file.stem}.mp4."
        )
    name = Path(os.path.relpath(file, home)).as_posix()
    if own_multiple is not None:
        size = keep_shape(read_clip_size(file), size, own_multiple)
    video = trim_video(read_clip_file(file, size, selection), selection.frames)
    masks_px, mask_notes = read_clip_masks(mask, file, video, size)
    if not masks_px.any():
        raise ValueError(
            f"The masks {mask} show no subject in the frames that are used of {file.name}. They must be "
            "white on the subject. Choose other frames, or paint the masks again."
        )
    empty = int((masks_px.flatten(1).sum(1) == 0).sum())
    hidden = f", and none of it in {empty} frames" if empty else ""
    notes = [
        f"{len(video.frames)} frames of {size[0]}x{size[1]}, {caption!r}",
        *video.notes,
        *mask_notes,
        f"its masks {mask.name} cover {100 * masks_px.mean().item():.0f} % of it{hidden}",
    ]
    clip = SubjectClip(name, file, video.frames, masks_px, caption)
    return clip, [f"{name}: {note}" for note in notes]
