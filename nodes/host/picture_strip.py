"""Show the pictures of a training run with their masks on its node, before it trains."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...smra_core.data.subject_set import SubjectImage
from ...smra_core.wan.latents import to_uint8

DIMMED = 0.25
"""Brightness of what is not the subject."""
_MOST_PICTURES = 10
_SIDE = 128
"""Longer side of one small picture."""


def draw_masked_pictures(pictures: Sequence[SubjectImage]) -> Image.Image:
    """Draw the first ten pictures in a row, and below each one its subject with everything else darkened."""
    columns = []
    for picture in pictures[:_MOST_PICTURES]:
        mask_px = torch.ones_like(picture.pixels[:1]) if picture.mask_px is None else picture.mask_px
        subject = picture.pixels * (DIMMED + (1 - DIMMED) * mask_px)
        columns.append(torch.cat([picture.pixels, subject], dim=1))
    image = _to_picture(torch.cat(columns, dim=2))
    longest = max(pictures[0].pixels.shape[1:])
    scale = min(1.0, _SIDE / longest)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def show_masked_pictures(pictures: Sequence[SubjectImage]) -> None:
    """Show pictures and masks on the node that runs, as ComfyUI shows previews of a sampler."""
    import comfy.utils

    image = draw_masked_pictures(pictures)
    comfy.utils.ProgressBar(1).update_absolute(0, 1, ("JPEG", image, max(image.size)))


def _to_picture(pixels: Tensor) -> Image.Image:
    """Convert a picture `3 H W` in [0, 1] to an 8-bit PIL image."""
    return Image.fromarray(to_uint8(pixels).movedim(0, -1).contiguous().cpu().numpy())
