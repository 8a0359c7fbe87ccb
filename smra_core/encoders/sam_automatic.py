"""SAM without a prompt: of everything it finds in a picture, the mask that is most likely the subject."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

GRID = 6
"""Points asked about along each side."""
_MARGIN = 0.15
"""Share of each side that points keep away from the edge: a subject reaches into the middle."""
_POINTS_AT_ONCE = 12
_OFFSET = 1.0
"""How far SAM's threshold is moved to see whether a mask is stable; as in the authors' own generator."""
_STABLE, _SURE = 0.9, 0.8
"""Least stability and least IoU that SAM predicts; a little below the authors' generator (0.95 and 0.88), as
one mask is wanted, not only flawless ones."""
_LEAST, _MOST = 0.01, 0.85
"""Share of the picture that a subject covers: less is a detail, more the background."""


class Candidate(NamedTuple):
    """One mask and what speaks for it."""

    mask_px: Tensor
    """`H W` bool."""
    sure: float
    """The IoU that SAM predicts."""
    stability: float
    """IoU of the masks at a lower and a higher threshold."""


def subject_candidates(sam: Sam, picture: np.ndarray) -> Iterator[Candidate]:
    """All masks at a grid of points, of a picture `H W 3` uint8; every point gives three."""
    predictor = SamPredictor(sam)
    predictor.set_image(picture)
    height, width = picture.shape[:2]
    points = predictor.transform.apply_coords(grid_points(width, height), (height, width))
    asked = torch.as_tensor(points, dtype=torch.float32, device=sam.device)[:, None]
    for some in asked.split(_POINTS_AT_ONCE):
        yield from _at_points(predictor, some)


def grid_points(width: int, height: int) -> np.ndarray:
    """GRID * GRID points x, y in pixels, the outermost `_MARGIN` from the edges."""
    steps = np.linspace(_MARGIN, 1 - _MARGIN, GRID)
    return np.stack(np.meshgrid(steps * width, steps * height), -1).reshape(-1, 2)


def _at_points(predictor: SamPredictor, points: Tensor) -> list[Candidate]:
    threshold = predictor.model.mask_threshold
    logits, sure, _ = predictor.predict_torch(
        points, torch.ones(points.shape[:2], device=points.device), return_logits=True
    )
    flat = logits.flatten(0, 1)
    # The masks of a point, at full size, are what takes memory here: they leave the device as bits.
    stability = calculate_stability_score(flat, threshold, _OFFSET).nan_to_num(0)
    masks = (flat > threshold).cpu()
    return [
        Candidate(*found) for found in zip(masks, sure.flatten().tolist(), stability.tolist(), strict=True)
    ]


def most_likely_subject(candidates: Iterable[Candidate]) -> Tensor | None:
    """The largest and most central of the stable masks, `H W` bool; None when none could be a subject."""
    best, highest = None, 0.0
    for candidate in candidates:
        if candidate.stability >= _STABLE and candidate.sure >= _SURE:
            score = subject_score(candidate.mask_px)
            if score > highest:
                best, highest = candidate.mask_px, score
    return best


def subject_score(mask_px: Tensor) -> float:
    """How much a mask `H W` looks like a picture's subject, 0 to 1; 0 for details and backgrounds.

    The root of its share of the picture, times how near its center of mass is to the picture's center, times
    the share of the four edges that it leaves free: a floor or a sky touches three.
    """
    share = mask_px.float().mean().item()
    if not _LEAST <= share <= _MOST:
        return 0.0
    y, x = torch.nonzero(mask_px, as_tuple=True)
    height, width = mask_px.shape
    off_x = abs(x.float().mean().item() + 0.5 - width / 2) / (width / 2)
    off_y = abs(y.float().mean().item() + 0.5 - height / 2) / (height / 2)
    edges = (mask_px[0], mask_px[-1], mask_px[:, 0], mask_px[:, -1])
    touched = sum(edge.float().mean().item() for edge in edges) / 4
    return share**0.5 * max(0.0, 1 - max(off_x, off_y)) * (1 - touched)
