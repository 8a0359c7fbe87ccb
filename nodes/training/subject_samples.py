"""Make the pictures and clips of a subject from IMAGE and MASK batches of the graph."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from torch import Tensor

from ...smra_core.data.crop import Size, keep_shape
from ...smra_core.data.mask_check import may_be_mask
from ...smra_core.data.pixel_check import check_none_is_black, split_alpha
from ...smra_core.data.subject_clip import SubjectClip
from ...smra_core.data.subject_set import SubjectImage
from ...smra_core.wan.spec import trim_frames
from ..host.images import crop_clip_masks, crop_images, crop_masks

SubjectSample = SubjectImage | SubjectClip


def count_samples(batches: Sequence[Tensor], as_clip: bool) -> int:
    """Return the number of samples that IMAGE batches hold."""
    return sum(_count_in_batch(batch, as_clip) for batch in batches)


def _count_in_batch(batch: Tensor, as_clip: bool) -> int:
    return 1 if as_clip else len(batch)


def make_subject_samples(
    batches: Sequence[Tensor],
    masks: Sequence[Tensor],
    captions: Sequence[str],
    size: Size,
    as_clip: bool = False,
    own_multiple: int | None = None,
) -> tuple[list[SubjectSample], list[str]]:
    """Return the samples of IMAGE batches `B H W 3`, cropped to `size`, and notes on what was done.

    Each picture is a sample; with `as_clip` each batch of several pictures is one clip. `masks` are none, or
    a MASK batch for each IMAGE batch, white on the subject; `captions` has one for each sample. With
    `own_multiple` each batch keeps its own shape (see `crop.keep_shape`). Raises ValueError for pictures and
    masks that cannot work.
    """
    if len(masks) not in (0, len(batches)):
        raise ValueError(
            f"masks holds {len(masks)} MASK batches for {len(batches)} IMAGE batches. Give one for each, in "
            "the same order, or none for pictures whose subject SAM finds."
        )
    samples: list[SubjectSample] = []
    notes: list[str] = []
    left = iter(captions)
    for number, batch in enumerate(batches):
        mask, shape = masks[number] if masks else None, size
        if own_multiple is not None:
            shape = keep_shape((batch.shape[2], batch.shape[1]), size, own_multiple)
        words = list(islice(left, _count_in_batch(batch, as_clip)))
        if as_clip and len(batch) > 1:
            name = "clip" if len(batches) == 1 else f"clip {len(samples) + 1}"
            clip, batch_notes = make_clip(name, batch, mask, words[0], shape)
            samples.append(clip)
        else:
            name = f"batch {number + 1}"
            pictures, batch_notes = make_pictures(batch, mask, words, shape, len(samples) + 1)
            samples += pictures
        notes += batch_notes if len(batches) == 1 else [f"{name}: {note}" for note in batch_notes]
    return samples, notes


def make_clip(
    name: str, batch: Tensor, masks: Tensor | None, caption: str, size: Size
) -> tuple[SubjectClip, list[str]]:
    """Return the images, at most 4n+1, as one clip with its masks, and notes. ValueError without masks."""
    used = trim_frames(len(batch))
    images, _, notes = split_alpha(batch[:used], "frame")
    check_none_is_black(images)
    pixels, crop_notes = crop_images(images, size)
    masks_px, mask_notes = None, ["it has no masks"]
    if masks is not None:
        masks_px, mask_notes = crop_clip_masks(masks, batch, used, size)
    if masks_px is None or not masks_px.any():
        raise ValueError(
            f"The masks of the {name} show no subject ({'; '.join(mask_notes)}). Connect a mask for each "
            "frame, white on the subject, such as SAM 3's track gives; or turn as_clip off, and SAM finds it."
        )
    notes += [*crop_notes, *mask_notes, f"its masks cover {100 * masks_px.mean().item():.0f} % of the clip"]
    if used < len(batch):
        notes.append(f"of {len(batch)} frames {used} are used (WAN needs 4n+1)")
    return SubjectClip(name, Path(name), pixels, masks_px, caption), notes


def make_pictures(
    batch: Tensor, masks: Tensor | None, captions: Sequence[str], size: Size, first: int = 1
) -> tuple[list[SubjectImage], list[str]]:
    """Return the pictures with their masks, numbered from `first`, and notes on what the crop cut off."""
    images, alpha, notes = split_alpha(batch)
    check_none_is_black(images)
    pixels, crop_notes = crop_images(images, size)
    notes += crop_notes
    notes += [
        f"picture {number}: holds black and white alone. If it is a mask, connect it to masks"
        for number, picture in enumerate(images.movedim(-1, 1), 1)
        if may_be_mask(picture)
    ]
    found, mask_notes = _find_masks(images, masks, alpha, size)
    return [
        SubjectImage(f"picture {number}", Path(f"picture {number}"), picture, mask, caption)
        for number, (picture, mask, caption) in enumerate(zip(pixels, found, captions, strict=True), first)
    ], [*notes, *mask_notes]


def _find_masks(
    images: Tensor, masks: Tensor | None, alpha: Tensor | None, size: Size
) -> tuple[list[Tensor | None], list[str]]:
    """Return each picture's mask, its opaque part where it has no other, or None; and notes on the crop."""
    found: list[Tensor | None] = [None] * len(images)
    notes: list[str] = []
    if masks is not None:
        found, notes = crop_masks(masks, images, size)
    if alpha is None or None not in found:
        return found, notes
    # An opaque picture has no mask, as among files.
    cut_outs = (alpha >= 0.5).float() * (alpha < 0.5).flatten(1).any(1)[:, None, None]
    opaque, more = crop_masks(cut_outs, images, size)
    found = [own if own is not None else cut_out for own, cut_out in zip(found, opaque, strict=True)]
    return found, [*notes, "transparency serves as the mask of pictures without another", *more]
