"""What a clip of the sprite world shows, by classical measurement: no net, so nothing to be fooled.

The background is the median of the border, the sprite is what differs from it; its centroid, area, mean
color and outline over time tell motion, size, color and shape.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .scenes import AMPLITUDE, BACKGROUNDS, COLORS, HELD_OUT_MOTIONS, MOTION_WORDS, growth, track
from .sprite import SHAPES, coverage

THRESHOLD = 0.16
"""Distance in RGB from the background at which a pixel counts as sprite."""
LEAST_AREA = 25
"""Pixels below which no sprite is seen."""
AMPLITUDES = (0.45, 1.5)
"""Motions count between these multiples of the world's amplitude."""


class Reading(NamedTuple):
    """Labels and numbers read off one clip."""

    color: str
    background: str
    shape: str
    motion: str
    track: Tensor
    """`F 2`: centroid in pixels from its mean."""
    log_radius: Tensor
    """`F`, from its mean."""
    found: float
    """Part of the frames in which a sprite was seen."""


def measure(frames: Tensor) -> Reading:
    """Read a clip `F 3 H W` in [0, 1]; what cannot be seen is labeled `none`."""
    behind = _border_color(frames)
    mask = _differs(frames, behind)
    area = mask.sum((1, 2))
    seen = area >= LEAST_AREA
    background = _nearest(behind.median(0).values, BACKGROUNDS)
    if seen.sum() < len(frames) / 2:
        empty = torch.zeros(len(frames), 2)
        return Reading("none", background, "none", "none", empty, empty[:, 0], seen.float().mean().item())
    centers, radii = _hold(_centroids(mask), seen), _hold((area / math.pi).sqrt(), seen)
    path, size = centers - centers.mean(0), radii.log() - radii.log().mean()
    color = _nearest(_mean_color(frames, mask, seen), COLORS)
    shape = _shape(mask[seen], centers[seen], radii[seen])
    return Reading(color, background, shape, _motion(path, size), path, size, seen.float().mean().item())


def sprite_masks(frames: Tensor) -> Tensor:
    """Where the sprite is seen, `F H W` of 0 and 1, for frames `F 3 H W` in [0, 1]."""
    return _differs(frames, _border_color(frames)).float()


def _differs(frames: Tensor, behind: Tensor) -> Tensor:
    return (frames - behind[..., None, None]).norm(dim=1) > THRESHOLD


def _border_color(frames: Tensor) -> Tensor:
    edge = torch.cat([frames[..., :2, :].flatten(2), frames[..., -2:, :].flatten(2),
                      frames[..., :2].flatten(2), frames[..., -2:].flatten(2)], -1)  # fmt: skip
    return edge.median(-1).values


def _centroids(mask: Tensor) -> Tensor:
    weight = mask.float()
    total = weight.sum((1, 2)).clamp_min(1)
    place = torch.arange(mask.shape[-1]) + 0.5
    return torch.stack([(weight.sum(1) * place).sum(1) / total, (weight.sum(2) * place).sum(1) / total], -1)


def _hold(values: Tensor, seen: Tensor) -> Tensor:
    """Where no sprite was seen, the last value (or the first one that was seen)."""
    last = torch.where(seen, torch.arange(len(seen)), -1).cummax(0).values
    first = int(seen.nonzero()[0])
    return values[torch.where(last < 0, first, last)]


def _mean_color(frames: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    weight = (mask & seen[:, None, None]).float()[:, None]
    return (frames * weight).sum((0, 2, 3)) / weight.sum()


def _nearest(rgb: Tensor, palette: dict[str, tuple[float, float, float]]) -> str:
    return min(palette, key=lambda name: (rgb - torch.tensor(palette[name])).norm().item())


def _shape(mask: Tensor, centers: Tensor, radii: Tensor) -> str:
    """The shape whose outline of equal area and center overlaps most, over all frames."""

    def overlap(name: str) -> float:
        disc = coverage(name, centers, radii) > 0.5
        # A shape's own area and centroid, measured once, put it where the mask's are.
        scale = ((disc.sum((1, 2)) / math.pi).sqrt() / radii).clamp_min(0.1)
        shift = _centroids(disc) - centers
        outline = coverage(name, centers - shift / scale[:, None], radii / scale) > 0.5
        union = (outline | mask).sum((1, 2)).clamp_min(1)
        return ((outline & mask).sum((1, 2)) / union).mean().item()

    return max(SHAPES, key=overlap)


def _motion(path: Tensor, log_radius: Tensor) -> str:
    """The motion whose track and growth, at its best amplitude, leave the least squared error."""
    u = torch.linspace(0, 1, len(path))
    seen = torch.cat([path / AMPLITUDE, log_radius[:, None] / 0.25], 1)

    def error(name: str) -> float:
        size = growth(name, u).log()
        pattern = torch.cat([track(name, u), (size - size.mean())[:, None] / 0.25], 1)
        pattern = pattern - pattern.mean(0)
        if name == "static":
            return (seen**2).sum().item()
        amplitude = ((seen * pattern).sum() / (pattern**2).sum()).clamp(*AMPLITUDES)
        return ((seen - amplitude * pattern) ** 2).sum().item()

    return min((*MOTION_WORDS, *HELD_OUT_MOTIONS), key=error)
