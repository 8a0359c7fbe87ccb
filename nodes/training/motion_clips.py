"""Make the clips of a motion from IMAGE and MASK batches of the graph."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...smra_core.data.crop import Size, keep_shape
from ...smra_core.data.frame_rate import WAN_FPS
from ...smra_core.data.motion_clip import FEWEST_FRAMES, MotionClip
from ...smra_core.data.motion_set import describe_clip
from ...smra_core.data.pixel_check import check_clip, split_alpha
from ...smra_core.wan.spec import trim_frames
from ..host.images import crop_clip_masks, crop_images


def make_motion_clips(
    batches: Sequence[Tensor],
    masks: Sequence[Tensor],
    captions: Sequence[str],
    frames: int,
    size: Size,
    own_multiple: int | None = None,
) -> list[MotionClip]:
    """Return the first frames, at most `frames` and 4n+1, of each IMAGE batch as a clip.

    `masks` are none, one for all clips, or one MASK batch for each; they are white where a clip does not
    count. Clips are cropped to `size`, or keep their own shape (see `crop.keep_shape`). Raises ValueError,
    naming the clip, for too few frames, and for masks that do not fit.
    """
    if len(masks) not in (0, 1, len(batches)):
        raise ValueError(
            f"exclude holds {len(masks)} MASK batches for {len(batches)} clips. Give one for all clips, or "
            "one for each."
        )
    names = ["clip"] if len(batches) == 1 else [f"clip {number}" for number in range(1, len(batches) + 1)]
    matched = list(masks) * (len(batches) if len(masks) == 1 else 1) or [None] * len(batches)
    return [
        _make_clip(name, batch, mask, caption, frames, size, own_multiple)
        for name, batch, mask, caption in zip(names, batches, matched, captions, strict=True)
    ]


def list_notes(clips: Sequence[MotionClip]) -> list[str]:
    """Return the notes on the clips; several are each named."""
    if len(clips) == 1:
        return clips[0].notes
    return [
        line
        for clip in clips
        for line in (describe_clip(clip), *(f"{clip.name}: {note}" for note in clip.notes))
    ]


def _make_clip(
    name: str,
    batch: Tensor,
    mask: Tensor | None,
    caption: str,
    frames: int,
    size: Size,
    own_multiple: int | None,
) -> MotionClip:
    if len(batch) < FEWEST_FRAMES:
        raise ValueError(
            f"The {name} has {len(batch)} frames; a motion needs at least {FEWEST_FRAMES}. Load more of it, "
            "49 is the paper's number."
        )
    used_frames = min(frames, trim_frames(len(batch)))
    rgb, _, notes = split_alpha(batch[:used_frames], "frame")
    if own_multiple is not None:
        size = keep_shape((rgb.shape[2], rgb.shape[1]), size, own_multiple)
    pixels, crop_notes = crop_images(rgb, size)
    notes += check_clip(rgb) + crop_notes
    if used_frames < frames:
        notes.append(f"{frames} frames were asked for, {len(batch)} are there, {used_frames} are used")
    exclude_px = None
    if mask is not None:
        exclude_px, mask_notes = crop_clip_masks(mask, batch, used_frames, size)
        notes += mask_notes
        if exclude_px is not None:
            notes.append(f"its mask leaves out {100 * exclude_px.mean().item():.0f} % of the clip")
    return MotionClip(name, Path(name), pixels, caption, WAN_FPS, notes, exclude_px)
