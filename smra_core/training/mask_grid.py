"""Bring masks of frames to the grids of latents and of optical flow, and average errors inside of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..wan.latents import split_by_latent


def pool_to_latents(mask_px: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask `1 f h w` of a clip's masks `F 1 H W`, F = 4n+1, on a latent grid of the size (h, w).

    It is 1 in every cell that the mask touches in any of the latent's frames, and 0 elsewhere.
    """
    cells = _pool(mask_px, size)
    return torch.stack([frames.amax(0) for frames in split_by_latent(cells)], dim=1)


def pool_to_pairs(mask_px: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask `F-1 1 H W` of a clip's masks `F 1 H W`, for an optical flow of the size (height, width).

    It is 1 for a pair of frames in every pixel that the mask touches in either of them, and 0 elsewhere.
    """
    cells = _pool(mask_px, size)
    return torch.maximum(cells[:-1], cells[1:])


def _pool(mask_px: Tensor, size: tuple[int, int]) -> Tensor:
    # Average pooling covers every pixel, where a bilinear sample would miss a thin limb.
    return (F.adaptive_avg_pool2d(mask_px.float(), size) > 0).float()


def average_inside(error: Tensor, mask_latent: Tensor | None) -> Tensor:
    """Return the mean `B` of errors `B C f h w`, over the cells where the mask `B 1 f h w` is 1.

    Without a mask all cells count; a sample whose mask is 0 everywhere gives 0.
    """
    if mask_latent is None:
        return error.flatten(1).mean(1)
    total = (error * mask_latent).flatten(1).sum(1)
    return total / (mask_latent.flatten(1).sum(1) * error.shape[1]).clamp_min(1)
