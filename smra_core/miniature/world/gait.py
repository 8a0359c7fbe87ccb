"""Reading of walking figures: where the legs are in each frame, and how their swing fits the painter's.

Each frame is compared with figures painted with their legs in many places; no network takes part.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .figure import measure_figure, paint_figure
from .measure import correlate, crop_around, find_sprite
from .scenes import BACKGROUNDS, FIGURES, RADIUS, STRIDES
from .sprite import SIZE, paint

SWINGS = torch.linspace(-1, 1, 9)
"""Places of the legs that a frame is compared with."""
LEAST_AMPLITUDE, LARGEST_LAG = 0.4, 45.0
"""Limits of a gait that counts as the painter's: least amplitude, and largest lag in degrees."""


class Gait(NamedTuple):
    """How the legs of a figure swing in a clip."""

    swing: Tensor
    """Where the legs are in each frame `F`, in [-1, 1]."""
    amplitude: float
    """Amplitude of the swing at the painter's cadence; the painter's own is near 1, and 0 is no walk."""
    lag: float
    """Lag behind the painter's legs, in degrees of one swing to and fro: -180 to 180."""

    @property
    def is_right(self) -> bool:
        """Whether the legs swing as far and at the same time as the painter's, within the limits."""
        return self.amplitude >= LEAST_AMPLITUDE and abs(self.lag) <= LARGEST_LAG


def read_gait(frames: Tensor, figure: str) -> Gait:
    """Read how the legs of a figure swing in frames `F 3 H W` in [0, 1]."""
    swing = read_swing(frames, figure)
    turn = 2 * math.pi * STRIDES * torch.linspace(0, 1, len(frames))
    waves = torch.stack([torch.sin(turn), torch.cos(turn), torch.ones_like(turn)], 1)
    along, across, _ = torch.linalg.lstsq(waves, swing[:, None]).solution[:, 0].tolist()
    return Gait(swing, math.hypot(along, across), math.degrees(math.atan2(-across, along)))


def read_swing(frames: Tensor, figure: str) -> Tensor:
    """Return the swing `F` of the painted figure that is most like each frame; 0 without a sprite."""
    places = paint_swings(figure)
    read = torch.zeros(len(frames))
    for index, (frame, mask) in enumerate(zip(frames, find_sprite(frames), strict=True)):
        if mask.any():
            crop = crop_around(frame, mask)
            read[index] = max(SWINGS.tolist(), key=lambda swing: correlate(crop, places[swing]))
    return read


@cache
def paint_swings(figure: str) -> dict[float, Tensor]:
    """Paint crops `3 CROP CROP` of a figure with its legs in each of the places SWINGS."""
    center = torch.full((len(SWINGS), 2), SIZE / 2)
    swing = SWINGS.view(-1, 1, 1)
    painted = paint(
        lambda x, y: measure_figure(x, y, swing), center, torch.full((len(SWINGS),), RADIUS),
        paint_figure(FIGURES[figure], swing), torch.tensor(BACKGROUNDS["black"]),
    )  # fmt: skip
    crops = [crop_around(*pair) for pair in zip(painted.frames, painted.mask_px, strict=True)]
    return dict(zip(SWINGS.tolist(), crops, strict=True))
