"""Whether the parts of a figure are in their places, which colors alone do not tell."""

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from ..world.figure import PARTS, measure_figure, paint_figure
from ..world.measure import correlate, crop_around, find_sprite
from ..world.scenes import BACKGROUNDS, FIGURES, Scene
from ..world.sprite import paint


def measure_parts(frames: Tensor, subject: str) -> float:
    """Return the share of the frames `F 3 H W` in which a figure is liker to the subject than to every other
    of the 24 arrangements of its four colors. A frame without a sprite does not count as like.
    """
    masks = find_sprite(frames)
    crops = [crop_around(frame, mask) for frame, mask in zip(frames, masks, strict=True) if mask.any()]
    return sum(_has_own_arrangement(crop, subject) for crop in crops) / len(frames)


def _has_own_arrangement(crop: Tensor, subject: str) -> bool:
    own, *others = (correlate(crop, each) for each in paint_arrangements(subject))
    return own > max(others)


@cache
def paint_arrangements(subject: str) -> list[Tensor]:
    """Paint crops `3 CROP CROP` of all arrangements of a figure's colors; the first is the subject's own."""
    scene, colors = Scene(), [FIGURES[subject][part] for part in PARTS]
    center, radius = torch.tensor([scene.center]), torch.tensor([scene.radius])
    painted = [
        paint(
            measure_figure, center, radius, paint_figure(dict(zip(PARTS, order, strict=True))),
            torch.tensor(BACKGROUNDS[scene.background]),
        )
        for order in permutations(colors)
    ]  # fmt: skip
    return [crop_around(each.frames[0], each.mask_px[0]) for each in painted]
