"""Read masks of a clip's frames: a video, a folder of numbered pictures, or one picture for all frames."""

from pathlib import Path

from torch import Tensor

from .clip_file import is_video_name, read_clip_file, read_clip_size
from .crop import Size, cover_box, fit, has_same_shape, to_pixels
from .file_names import fold_name, list_visible_files, list_visible_folders
from .mask_files import find_masked_name, is_picture_name
from .picture import read_mask
from .picture_sequence import is_animation
from .video import Selection, Video


def find_clip_mask(folder: Path, clip: Path) -> Path | None:
    """Return the mask of a clip in a folder: a folder, a video or a picture; None when there is none.

    It has the clip's stem or a mask's name (`walk_mask.mp4`, `walk_mask/`); beside the clip only a mask's
    name, as a picture of the clip's stem may be anything. Raises ValueError when it leads out of the folder.
    """
    stem, is_beside = fold_name(clip.stem), folder.resolve() == clip.parent.resolve()
    files = [folder / name for name in list_visible_files(folder) if _may_be_mask(name)]
    for path in (*list_visible_folders(folder), *files):
        own = path.name if path.is_dir() else path.stem
        if find_masked_name(path.name) == stem or (fold_name(own) == stem and not is_beside):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(
                    f"The mask {path} leads out of {folder}. Put the mask itself into the folder."
                )
            return path
    return None


def _may_be_mask(name: str) -> bool:
    return is_video_name(name) or is_picture_name(name)


def read_clip_masks(mask: Path, clip: Path, video: Video, size: Size) -> tuple[Tensor, list[str]]:
    """Return a mask `F 1 H W` of 0 and 1 for each frame of a clip that was read, and notes.

    `mask` is a video or a folder of numbered pictures, whose frames have the numbers of the clip's, or one
    picture for all frames; it is cropped as the clip is. Raises ValueError, naming the mask, when it has
    another shape or too few frames.
    """
    if mask.is_file() and is_picture_name(mask.name) and not is_animation(mask):
        return _read_still(mask, clip, len(video.frames), size)
    _check_shape(mask, read_clip_size(mask), clip)
    first, last = video.numbers[0], video.numbers[-1]
    frames, notes = _read_gray(mask, size, Selection(last - first + 1, first)), []
    if frames is not None and len(frames) == last - first + 1:
        frames = frames[[number - first for number in video.numbers]]
    else:
        frames, notes = _match_frames(mask, clip, video, size)
    return (frames >= 0.5).float(), notes


def _read_still(mask: Path, clip: Path, count: int, size: Size) -> tuple[Tensor, list[str]]:
    image, notes = read_mask(mask)
    _check_shape(mask, image.size, clip)
    mask_px = (to_pixels(fit(image, size, cover_box(image.size, size))) >= 0.5).float()
    notes = [f"{note} (mask {mask.name})" for note in notes]
    return mask_px.expand(count, -1, -1, -1), [*notes, f"{mask.name} is the mask of all frames"]


def _check_shape(mask: Path, size: Size, clip: Path) -> None:
    clip_size = read_clip_size(clip)
    if not has_same_shape(size, clip_size):
        raise ValueError(
            f"The mask {mask} is {size[0]}x{size[1]}, its clip {clip.name} is {clip_size[0]}x{clip_size[1]}. "
            "Give a mask of the same shape."
        )


def _read_gray(mask: Path, size: Size, selection: Selection) -> Tensor | None:
    """Return gray frames `F 1 H W` of a mask; None when it has none from the selection's start on."""
    try:
        return read_clip_file(mask, size, selection).frames.mean(1, keepdim=True)
    except ValueError:
        if selection.start:  # the mask may be shorter than the clip, which is told by what reads it from 0 on
            return None
        raise


def _match_frames(mask: Path, clip: Path, video: Video, size: Size) -> tuple[Tensor, list[str]]:
    """Return frames of a mask that has as many as were read of the clip, or one."""
    count = len(video.numbers)
    frames = _read_gray(mask, size, Selection(count + 1))
    assert frames is not None  # because it starts at 0
    if len(frames) == 1:
        return frames.expand(count, -1, -1, -1), [f"{mask.name} is the mask of all frames"]
    more = " or more" if len(frames) > count else ""
    if len(frames) != count:
        raise ValueError(
            f"The mask {mask} has {len(frames)} frames{more}, and frames "
            f"{video.numbers[0]} to {video.numbers[-1]} of {clip.name} are used. Give a mask for each frame "
            f"of the clip, for each of the {count} that are used, or one for all."
        )
    return frames, [f"the frames of {mask.name} belong to the {count} used ones, one by one"]
