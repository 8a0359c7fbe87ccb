"""Classical measurement of what a clip of the sprite world shows. No network is used that could be fooled.

The background is the median of the border, and the sprite is every pixel that differs from it. The sprite's
centroid, area, mean color and outline over time give motion, size, color and shape.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import AMPLITUDE, BACKGROUNDS, COLORS, HELD_OUT_MOTIONS, MOTION_WORDS, grow, trace
from .sprite import SHAPES, cover_pixels

THRESHOLD = 0.16
"""Distance in RGB from the background above which a pixel counts as part of the sprite."""
LEAST_AREA = 25
"""Number of pixels below which a sprite counts as not seen."""
AMPLITUDES = (0.45, 1.5)
"""Smallest and largest amplitude of a motion, in multiples of the world's."""
CROP = 24
"""Pixels along a side of the crop in which two sprites are compared."""


class Reading(NamedTuple):
    """Labels and numbers measured in one clip."""

    color: str
    background: str
    shape: str
    motion: str
    track: Tensor
    """Centroid `F 2` in pixels, relative to its mean over the clip."""
    log_radius: Tensor
    """Logarithm of the radius `F`, relative to its mean over the clip."""
    found: float
    """Share of the frames in which a sprite was seen."""


def measure(frames: Tensor) -> Reading:
    """Measure a clip `F 3 H W` in [0, 1]; a label that cannot be seen is `none`."""
    behind = _measure_border(frames)
    mask = _differs(frames, behind)
    area = mask.sum((1, 2))
    seen = area >= LEAST_AREA
    background = _find_nearest(behind.median(0).values, BACKGROUNDS)
    if seen.sum() < len(frames) / 2:
        empty = torch.zeros(len(frames), 2)
        return Reading("none", background, "none", "none", empty, empty[:, 0], seen.float().mean().item())
    centers, radii = _hold_last(_measure_centroids(mask), seen), _hold_last((area / math.pi).sqrt(), seen)
    path, size = centers - centers.mean(0), radii.log() - radii.log().mean()
    color = _find_nearest(_average_color(frames, mask, seen), COLORS)
    shape = _recognize_shape(mask[seen], centers[seen], radii[seen])
    return Reading(
        color, background, shape, _recognize_motion(path, size), path, size, seen.float().mean().item()
    )


def find_sprite(frames: Tensor) -> Tensor:
    """Return masks `F H W` of 0 and 1 of the sprite in frames `F 3 H W` in [0, 1]."""
    return _differs(frames, _measure_border(frames)).float()


def crop_around(frame: Tensor, mask_px: Tensor) -> Tensor:
    """Crop the sprite of a frame `3 H W` to `3 CROP CROP`: a box of 2.4 mean radii around its centroid."""
    size = frame.shape[-1]
    area = mask_px.sum()
    place = torch.arange(size, dtype=torch.float32) + 0.5
    center = torch.stack([(mask_px.sum(0) * place).sum(), (mask_px.sum(1) * place).sum()]) / area
    half = 1.2 * (area / torch.pi).sqrt()
    steps = (torch.arange(CROP) + 0.5) / CROP * 2 - 1
    y, x = torch.meshgrid(center[1] + half * steps, center[0] + half * steps, indexing="ij")
    grid = torch.stack([x, y], -1)[None] / size * 2 - 1
    cut = torch.where(mask_px > 0, frame, torch.tensor(0.5))
    return F.grid_sample(cut[None], grid, align_corners=False, padding_mode="border")[0]


def correlate(a: Tensor, b: Tensor) -> float:
    """Correlate two pictures around mid gray: 1 if they are equal up to contrast, 0 if they are unrelated."""
    return F.cosine_similarity((a - 0.5).flatten(), (b - 0.5).flatten(), dim=0).item()


def _differs(frames: Tensor, behind: Tensor) -> Tensor:
    return (frames - behind[..., None, None]).norm(dim=1) > THRESHOLD


def _measure_border(frames: Tensor) -> Tensor:
    edge = torch.cat([frames[..., :2, :].flatten(2), frames[..., -2:, :].flatten(2),
                      frames[..., :2].flatten(2), frames[..., -2:].flatten(2)], -1)  # fmt: skip
    return edge.median(-1).values


def _measure_centroids(mask: Tensor) -> Tensor:
    weight = mask.float()
    total = weight.sum((1, 2)).clamp_min(1)
    place = torch.arange(mask.shape[-1]) + 0.5
    return torch.stack([(weight.sum(1) * place).sum(1) / total, (weight.sum(2) * place).sum(1) / total], -1)


def _hold_last(values: Tensor, seen: Tensor) -> Tensor:
    """Replace values where no sprite was seen by the last one seen, before that by the first one seen."""
    last = torch.where(seen, torch.arange(len(seen)), -1).cummax(0).values
    first = int(seen.nonzero()[0])
    return values[torch.where(last < 0, first, last)]


def _average_color(frames: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    weight = (mask & seen[:, None, None]).float()[:, None]
    return (frames * weight).sum((0, 2, 3)) / weight.sum()


def _find_nearest(rgb: Tensor, palette: dict[str, tuple[float, float, float]]) -> str:
    return min(palette, key=lambda name: (rgb - torch.tensor(palette[name])).norm().item())


def _recognize_shape(mask: Tensor, centers: Tensor, radii: Tensor) -> str:
    """Return the shape whose outline of equal area and center overlaps most, over all frames."""

    def measure_overlap(name: str) -> float:
        disc = cover_pixels(name, centers, radii) > 0.5
        # A shape's own area and centroid, measured once, put it where the mask's are.
        scale = ((disc.sum((1, 2)) / math.pi).sqrt() / radii).clamp_min(0.1)
        shift = _measure_centroids(disc) - centers
        outline = cover_pixels(name, centers - shift / scale[:, None], radii / scale) > 0.5
        union = (outline | mask).sum((1, 2)).clamp_min(1)
        return ((outline & mask).sum((1, 2)) / union).mean().item()

    return max(SHAPES, key=measure_overlap)


def _recognize_motion(path: Tensor, log_radius: Tensor) -> str:
    """Return the motion whose track and growth, at its best amplitude, leave the least squared error."""
    u = torch.linspace(0, 1, len(path))
    seen = torch.cat([path / AMPLITUDE, log_radius[:, None] / 0.25], 1)

    def measure_error(name: str) -> float:
        size = grow(name, u).log()
        pattern = torch.cat([trace(name, u), (size - size.mean())[:, None] / 0.25], 1)
        pattern = pattern - pattern.mean(0)
        if name == "static":
            return (seen**2).sum().item()
        amplitude = ((seen * pattern).sum() / (pattern**2).sum()).clamp(*AMPLITUDES)
        return ((seen - amplitude * pattern) ** 2).sum().item()

    return min((*MOTION_WORDS, *HELD_OUT_MOTIONS), key=measure_error)
