"""Show the pictures of a training run with their masks on its node, before it trains."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...smra_core.data.subject_clip import SubjectClip
from ...smra_core.data.subject_set import SubjectImage
from ...smra_core.wan.latents import to_uint8

DIMMED = 0.25
"""Brightness of what is not the subject."""
_MOST_PICTURES = 10
_SIDE = 128
"""Longer side of one small picture."""


def draw_masked_pictures(samples: Sequence[SubjectImage | SubjectClip]) -> Image.Image:
    """Draw the first ten pictures or frames in a row, and below each one its subject with everything else
    darkened.
    """
    frames = torch.cat([sample.frames for sample in samples])[:_MOST_PICTURES]
    masks = [
        torch.ones_like(sample.frames[:, :1]) if sample.masks_px is None else sample.masks_px
        for sample in samples
    ]
    subjects = frames * (DIMMED + (1 - DIMMED) * torch.cat(masks)[:_MOST_PICTURES])
    image = _to_picture(torch.cat([*torch.cat([frames, subjects], dim=2)], dim=2))
    longest = max(frames.shape[2:])
    scale = min(1.0, _SIDE / longest)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def show_masked_pictures(samples: Sequence[SubjectImage | SubjectClip]) -> None:
    """Show pictures and masks on the node that runs, as ComfyUI shows previews of a sampler."""
    import comfy.utils

    image = draw_masked_pictures(samples)
    comfy.utils.ProgressBar(1).update_absolute(0, 1, ("JPEG", image, max(image.size)))


def _to_picture(pixels: Tensor) -> Image.Image:
    """Convert a picture `3 H W` in [0, 1] to an 8-bit PIL image."""
    return Image.fromarray(to_uint8(pixels).movedim(0, -1).contiguous().cpu().numpy())
