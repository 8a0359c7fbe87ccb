"""A mask laid over its picture, to see at a glance what counts as the subject."""

import torch
import torch.nn.functional as F
from torch import Tensor

DIM = 0.35
"""Brightness that is left outside the mask."""
OUTLINE = (1.0, 0.35, 0.1)


def mask_preview(picture: Tensor, mask_px: Tensor, outline_px: int = 2) -> Tensor:
    """`B 3 H W` or `3 H W` in [0, 1] with the mask `B 1 H W` or `1 H W` over it: grey and dark outside, a
    coloured line along its edge, untouched inside.

    ValueError unless both have the same grid. `outline_px` is the line's width; 0 draws none.
    """
    if picture.shape[-3] != 3 or mask_px.shape != (*picture.shape[:-3], 1, *picture.shape[-2:]):
        raise ValueError(
            f"A picture `3 H W` and its mask `1 H W` are needed, got {tuple(picture.shape)} and "
            f"{tuple(mask_px.shape)}. Resize the mask to the picture."
        )
    mask = mask_px.to(picture).clamp(0, 1)
    grey = DIM * picture.mean(-3, keepdim=True)
    shown = torch.lerp(grey.expand_as(picture), picture, mask)
    line = picture.new_tensor(OUTLINE)[:, None, None]
    return torch.lerp(shown, line.expand_as(shown), _edge(mask, outline_px))


def _edge(mask: Tensor, width: int) -> Tensor:
    """Pixels outside the mask that are at most `width` from it, 0 or 1."""
    inside = (mask > 0.5).to(mask).reshape(-1, 1, *mask.shape[-2:])
    grown = F.max_pool2d(inside, 2 * width + 1, stride=1, padding=width) if width else inside
    return (grown - inside).reshape(mask.shape)
