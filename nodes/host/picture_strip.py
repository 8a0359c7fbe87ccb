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
    """Draw at most ten pictures or frames in a row, and below each one its subject with everything else
    darkened. Of several clips there are as many frames each, evenly spaced.
    """
    each = max(1, _MOST_PICTURES // len(samples))
    tiles = [tile for sample in samples for tile in _draw_tiles(sample, each)][:_MOST_PICTURES]
    scale = min(1.0, _SIDE / max(max(tile.width, tile.height // 2) for tile in tiles))
    tiles = [tile.resize([max(1, round(side * scale)) for side in tile.size]) for tile in tiles]
    row = Image.new("RGB", (sum(tile.width for tile in tiles), max(tile.height for tile in tiles)))
    left = 0
    for tile in tiles:
        row.paste(tile, (left, 0))
        left += tile.width
    return row


def _draw_tiles(sample: SubjectImage | SubjectClip, most: int) -> list[Image.Image]:
    """Draw at most so many frames of a sample, evenly spaced, each above its subject."""
    frames, masks = sample.frames, sample.masks_px
    chosen = torch.linspace(0, len(frames) - 1, min(most, len(frames))).round().long()
    shown = frames[chosen]
    subjects = shown if masks is None else shown * (DIMMED + (1 - DIMMED) * masks[chosen])
    return [_to_picture(tile) for tile in torch.cat([shown, subjects], dim=2)]


def show_masked_pictures(samples: Sequence[SubjectImage | SubjectClip]) -> None:
    """Show pictures and masks on the node that runs, as ComfyUI shows previews of a sampler."""
    import comfy.utils

    image = draw_masked_pictures(samples)
    comfy.utils.ProgressBar(1).update_absolute(0, 1, ("JPEG", image, max(image.size)))


def _to_picture(pixels: Tensor) -> Image.Image:
    """Convert a picture `3 H W` in [0, 1] to an 8-bit PIL image."""
    return Image.fromarray(to_uint8(pixels).movedim(0, -1).contiguous().cpu().numpy())
