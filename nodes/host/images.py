"""Convert IMAGE and MASK batches to the training size: scaled to cover it, then cropped at the center."""

import torch
from PIL import Image
from torch import Tensor

from ...smra_core.data.crop import Size, cover_box, describe_crop, fit, to_pixels
from ...smra_core.wan.latents import to_uint8


def crop_images(images: Tensor, size: Size) -> tuple[Tensor, list[str]]:
    """Return pictures `B 3 height width` in [0, 1] of an IMAGE `B H W 3`, and notes on what the crop cut off.

    `size` is (width, height).
    """
    pictures = [_to_picture(image) for image in images]
    box = cover_box(pictures[0].size, size)
    note = describe_crop(pictures[0].size, box)
    pixels = torch.stack([to_pixels(fit(picture, size, box)) for picture in pictures])
    return pixels, [f"every picture of {note}"] if note else []


def crop_masks(masks: Tensor, images: Tensor, size: Size) -> tuple[list[Tensor | None], list[str]]:
    """Return a mask `1 height width` of 0 and 1 for each picture, and notes on what the crop cut off.

    `masks` is `B H W`, `images` `B H W 3`, `size` (width, height). A mask that is black all over becomes
    None. Raises ValueError when masks and pictures differ in number or shape, or when the crop leaves
    nothing of a mask.
    """
    masks = masks[None] if masks.ndim == 2 else masks
    if len(masks) != len(images) or masks.shape[1:] != images.shape[1:3]:
        raise ValueError(
            f"There are {len(masks)} masks of {masks.shape[2]}x{masks.shape[1]} for {len(images)} pictures "
            f"of {images.shape[2]}x{images.shape[1]}. Give one mask of the same size for each picture."
        )
    cropped_masks, notes = [], []
    for number, mask in enumerate(masks, 1):
        box = cover_box((mask.shape[1], mask.shape[0]), size)
        whole = mask.float().clamp(0, 1).cpu()
        if not whole.any():
            cropped_masks.append(None)
            continue
        image = Image.fromarray(to_uint8(whole).numpy())
        cropped = (to_pixels(fit(image, size, box)) >= 0.5).float()
        if not cropped.any():
            raise ValueError(
                f"Mask {number} has no subject left after cropping at the center to {size[0]}x{size[1]}. "
                "Crop the picture around the subject, or paint the mask again."
            )
        left, top, right, bottom = (round(edge) for edge in box)
        lost = 1 - (whole[top:bottom, left:right].sum() / whole.sum()).item()
        if lost > 0.005:
            notes.append(
                f"the crop cuts off {max(1, round(100 * lost))} % of the subject in picture {number}"
            )
        cropped_masks.append(cropped)
    return cropped_masks, notes


def as_image(pixels: Tensor) -> Tensor:
    """Convert pictures `B 3 H W` in [0, 1] to ComfyUI's IMAGE `B H W 3`."""
    return pixels.movedim(1, -1).contiguous()


def _to_picture(image: Tensor) -> Image.Image:
    """Convert one picture `H W 3` in [0, 1] to an 8-bit PIL image."""
    return Image.fromarray(to_uint8(image[..., :3]).cpu().numpy())
