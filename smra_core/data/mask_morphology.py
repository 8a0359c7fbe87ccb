"""Mend masks: close holes, drop specks and soften edges, with kornia's morphology and filters.

Masks are `B 1 H W` with values in [0, 1]. The radius is in pixels; 0 returns the mask unchanged. Closing and
opening ignore everything outside the picture.
"""

import torch
from torch import Tensor


def close_holes(mask_px: Tensor, radius: int) -> Tensor:
    """Fill holes and gaps into which a disk of this radius does not fit (morphological closing).

    Only adds to the mask. Raises ValueError unless the mask is `B 1 H W` and the radius a whole number >= 0.
    """
    _check_arguments(mask_px, radius)
    if radius == 0:
        return mask_px
    from kornia.morphology import closing

    return closing(mask_px, _build_disk(radius, mask_px))


def drop_specks(mask_px: Tensor, radius: int) -> Tensor:
    """Remove specks and spikes into which a disk of this radius does not fit (morphological opening).

    Only takes from the mask; corners become as round as the disk. Raises ValueError as `close_holes` does.
    """
    _check_arguments(mask_px, radius)
    if radius == 0:
        return mask_px
    from kornia.morphology import opening

    return opening(mask_px, _build_disk(radius, mask_px))


def soften(mask_px: Tensor, radius: int) -> Tensor:
    """Blur the mask's edges with a Gaussian of standard deviation radius / 2, cut off at the radius.

    The mean of a mask is kept where the subject is at least `radius` away from the picture's edge. Raises
    ValueError as `close_holes` does.
    """
    _check_arguments(mask_px, radius)
    if radius == 0:
        return mask_px
    from kornia.filters import gaussian_blur2d

    size, sigma = 2 * radius + 1, radius / 2
    # The border is replicated, as a subject cut by the picture's edge goes on outside.
    blurred = gaussian_blur2d(mask_px, (size, size), (sigma, sigma), border_type="replicate")
    return blurred.clamp(0, 1)  # the kernel's sum is 1 up to rounding


def _build_disk(radius: int, like: Tensor) -> Tensor:
    """Return the pixels within `radius` of the center as 1 in a square of `2 radius + 1`, otherwise 0."""
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    return (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(like.dtype)


def _check_arguments(mask_px: Tensor, radius: int) -> None:
    if mask_px.ndim != 4 or mask_px.shape[1] != 1 or not mask_px.is_floating_point():
        raise ValueError(
            f"The mask is {tuple(mask_px.shape)}, {mask_px.dtype}; give (B, 1, H, W) with floating-point "
            "values in [0, 1]."
        )
    if int(radius) != radius or radius < 0:
        raise ValueError(f"The radius is {radius}; give a whole number of pixels, 0 for no change.")
