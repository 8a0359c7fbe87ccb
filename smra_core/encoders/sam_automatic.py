"""SAM without a prompt: find masks all over a picture and choose the most likely subject among them.

The masks come from the generator of the package segment_anything. It was compared with a loop of our own over
the package's predictor, which keeps one mask at a time, on vit_b, one CPU core and a picture of 1024x1024 px.
Peak memory was 3.51 GiB with both; without the image encoder, which takes most, it was 1.40 to 1.48 GiB with
the generator and 1.45 GiB with the loop. Time without the image encoder was 27 and 18 s.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .packages import import_package

GRID = 6
"""Number of points along each side at which SAM is asked for masks."""
_MARGIN = 0.15
"""Share of each side between the points and the edge, because a subject reaches into the middle."""
_POINTS_PER_BATCH = 12
_LEAST_STABILITY, _LEAST_PREDICTED_IOU = 0.9, 0.8
"""Limits below which a mask is dropped; a little lower than the authors' (0.95 and 0.88), because here one
mask is needed, not only flawless ones.
"""
_KEEP_OVERLAPPING = 1.0
"""Box IoU above which the generator drops the worse of two masks: at 1 it drops none."""
_LEAST_SHARE, _LARGEST_SHARE = 0.01, 0.85
"""Limits of the share of the picture that a subject covers: less is a detail, more is the background."""


def find_candidates(sam: nn.Module, picture: np.ndarray) -> Iterator[Tensor]:
    """Yield the masks `H W` bool that SAM finds at a grid of points of a picture `H W 3` uint8.

    Every point gives three; the unstable ones, and those with a low predicted IoU, are left out.
    """
    package = import_package("segment_anything", "SAM")
    amg = import_package("segment_anything.utils.amg", "SAM")
    generator = package.SamAutomaticMaskGenerator(
        sam,
        points_per_side=None,
        point_grids=[make_point_grid()],
        points_per_batch=_POINTS_PER_BATCH,
        pred_iou_thresh=_LEAST_PREDICTED_IOU,
        stability_score_thresh=_LEAST_STABILITY,
        box_nms_thresh=_KEEP_OVERLAPPING,
        output_mode="uncompressed_rle",  # only one mask at a time is unpacked, below
    )
    # The generator moves its points to the device in float64, which Apple's GPUs do not have
    # (github:facebookresearch/segment-anything issue 94).
    to_pixels = generator.predictor.transform.apply_coords
    generator.predictor.transform.apply_coords = lambda *args: to_pixels(*args).astype(np.float32)
    for found in generator.generate(picture):
        yield torch.from_numpy(amg.rle_to_mask(found["segmentation"]))


def make_point_grid() -> np.ndarray:
    """Return GRID * GRID points x, y in [0, 1], the outermost `_MARGIN` from the edges."""
    steps = np.linspace(_MARGIN, 1 - _MARGIN, GRID)
    return np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)


def choose_subject(masks: Iterable[Tensor]) -> Tensor | None:
    """Return the mask `H W` with the highest score, or None if none of them could be a subject."""
    best_mask, best_score = None, 0.0
    for mask_px in masks:
        score = score_subject(mask_px)
        if score > best_score:
            best_mask, best_score = mask_px, score
    return best_mask


def score_subject(mask_px: Tensor) -> float:
    """Score how likely a mask `H W` is the subject of its picture, 0 to 1; 0 for details and backgrounds.

    The score is the root of the mask's share of the picture, times the nearness of its center of mass to the
    picture's center, times the share of the four edges that it leaves free, since a floor or a sky touches
    three.
    """
    share = mask_px.float().mean().item()
    if not _LEAST_SHARE <= share <= _LARGEST_SHARE:
        return 0.0
    y, x = torch.nonzero(mask_px, as_tuple=True)
    height, width = mask_px.shape
    offset_x = abs(x.float().mean().item() + 0.5 - width / 2) / (width / 2)
    offset_y = abs(y.float().mean().item() + 0.5 - height / 2) / (height / 2)
    edges = (mask_px[0], mask_px[-1], mask_px[:, 0], mask_px[:, -1])
    touched = sum(edge.float().mean().item() for edge in edges) / 4
    return share**0.5 * max(0.0, 1 - max(offset_x, offset_y)) * (1 - touched)
