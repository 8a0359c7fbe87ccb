"""Convert IMAGE and MASK batches to the training size: scaled to cover it, then cropped at the center."""

import torch
from PIL import Image
from torch import Tensor

from ...smra_core.data.crop import (
    Size,
    cover_box,
    describe_crop,
    describe_enlargement,
    fit,
    has_same_shape,
    to_pixels,
)
from ...smra_core.data.mask_check import describe_mask, may_be_inverted
from ...smra_core.data.pixel_check import check_mask_values
from ...smra_core.wan.latents import to_uint8


def crop_images(images: Tensor, size: Size) -> tuple[Tensor, list[str]]:
    """Return pictures `B 3 height width` in [0, 1] of an IMAGE `B H W 3`, and notes on crop and enlargement.

    `size` is (width, height).
    """
    pictures = [_to_picture(image) for image in images]
    box = cover_box(pictures[0].size, size)
    fitted = (describe_crop(pictures[0].size, box), describe_enlargement(box, size))
    pixels = torch.stack([to_pixels(fit(picture, size, box)) for picture in pictures])
    return pixels, [f"every picture of {note}" for note in fitted if note]


def crop_masks(masks: Tensor, images: Tensor, size: Size) -> tuple[list[Tensor | None], list[str]]:
    """Return a mask `1 height width` of 0 and 1 for each picture, and notes on what each covers and loses.

    `masks` is `B H W`, `B 1 H W` or `H W`, `images` `B H W 3`, `size` (width, height). A mask that is black
    all over becomes None, whatever its size: Load Image gives 64x64 for a picture without transparency. A
    mask of another size and the same shape is resized, as a file's is. Raises ValueError when masks and
    pictures differ in number or shape, when values are not in [0, 1], or when the crop leaves nothing of a
    mask.
    """
    masks = masks[None] if masks.ndim == 2 else masks[:, 0] if masks.ndim == 4 else masks
    check_mask_values(masks)
    masks = masks.float().clamp(0, 1).cpu()
    if not masks.any():
        return [None] * len(images), ["the masks are black all over, which counts as none"]
    height, width = images.shape[1:3]
    is_filled = masks.flatten(1).any(1)
    fits = has_same_shape((masks.shape[2], masks.shape[1]), (width, height))
    if len(masks) != len(images) or not fits:
        raise ValueError(
            f"There are {len(masks)} masks of {masks.shape[2]}x{masks.shape[1]} for {len(images)} pictures "
            f"of {width}x{height}. Give one mask of the same shape for each picture."
        )
    cropped_masks, notes = [], []
    if (masks.shape[2], masks.shape[1]) != (width, height):
        notes.append(f"masks are resized from {masks.shape[2]}x{masks.shape[1]} to {width}x{height}")
    for number, (mask, filled) in enumerate(zip(masks, is_filled, strict=True), 1):
        if not filled:
            cropped_masks.append(None)
            notes.append(f"picture {number}: its mask is black all over, which counts as none")
            continue
        image = Image.fromarray(to_uint8(mask).numpy())
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.NEAREST)
        cropped, mask_notes = _crop_mask(image, size, number)
        cropped_masks.append(cropped)
        notes += mask_notes
    return cropped_masks, notes


def crop_clip_masks(masks: Tensor, frames: Tensor, used: int, size: Size) -> tuple[Tensor | None, list[str]]:
    """Return a mask `used 1 height width` of 0 and 1 for the first frames of a clip, and notes.

    `masks` is a MASK: one for all frames, or one for each of `frames` `F H W 3`. Masks that are black all
    over become None. Raises ValueError when masks and frames differ in number or shape, and for values that
    are not in [0, 1].
    """
    masks = masks[None] if masks.ndim == 2 else masks[:, 0] if masks.ndim == 4 else masks
    check_mask_values(masks)
    masks = masks.float().clamp(0, 1).cpu()
    if not masks.any():
        return None, ["the masks are black all over, which counts as none"]
    height, width = frames.shape[1:3]
    fits = has_same_shape((masks.shape[2], masks.shape[1]), (width, height))
    if len(masks) not in (1, used, len(frames)) or not fits:
        raise ValueError(
            f"There are {len(masks)} masks of {masks.shape[2]}x{masks.shape[1]} for {len(frames)} frames of "
            f"{width}x{height}. Give one mask of the same shape for each frame, or one for all."
        )
    notes = ["one mask is that of all frames"] if len(masks) == 1 < used else []
    cropped = torch.stack([_fit_mask(Image.fromarray(to_uint8(mask).numpy()), size) for mask in masks[:used]])
    return cropped.expand(used, -1, -1, -1), notes


def _fit_mask(image: Image.Image, size: Size) -> Tensor:
    """Return the mask `1 height width` of 0 and 1 of a gray picture, scaled to cover `size` and cropped."""
    return (to_pixels(fit(image, size, cover_box(image.size, size))) >= 0.5).float()


def _crop_mask(image: Image.Image, size: Size, number: int) -> tuple[Tensor, list[str]]:
    """Return the mask `1 height width` of 0 and 1 of a gray picture, and notes on it."""
    box, whole = cover_box(image.size, size), to_pixels(image)[0]
    cropped = _fit_mask(image, size)
    if not cropped.any():
        raise ValueError(
            f"Mask {number} has no subject left after cropping at the center to {size[0]}x{size[1]}. "
            "Crop the picture around the subject, or paint the mask again."
        )
    mask_px = (whole >= 0.5).float()
    notes = [f"picture {number}: its mask {describe_mask(mask_px)}"]
    if may_be_inverted(mask_px):
        notes[0] += ". Load Image gives white where a picture is transparent; connect InvertMask behind it"
    left, top, right, bottom = (round(edge) for edge in box)
    lost = 1 - (whole[top:bottom, left:right].sum() / whole.sum()).item()
    if lost > 0.005:
        notes.append(f"the crop cuts off {max(1, round(100 * lost))} % of the subject in picture {number}")
    return cropped, notes


def as_image(pixels: Tensor) -> Tensor:
    """Convert pictures `B 3 H W` in [0, 1] to ComfyUI's IMAGE `B H W 3`."""
    return pixels.movedim(1, -1).contiguous()


def _to_picture(image: Tensor) -> Image.Image:
    """Convert one picture `H W 3` in [0, 1] to an 8-bit PIL image."""
    return Image.fromarray(to_uint8(image[..., :3]).cpu().numpy())
