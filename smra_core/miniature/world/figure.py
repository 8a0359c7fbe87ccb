"""Figures: sprites of a head, a body and two legs, each in a color of its own.

Neither the outline nor the mean color tells two figures of the same colors apart.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .sprite import Outline, Texture, blend


def _make_box(x: float, y: float, half_width: float, half_height: float) -> Outline:
    return lambda u, v: torch.maximum((u - x).abs() - half_width, (v - y).abs() - half_height)


PARTS: dict[str, Outline] = {
    "head": lambda x, y: (x * x + (y + 0.74) ** 2).sqrt() - 0.54,
    "body": _make_box(0, 0.14, 0.74, 0.40),
    "left leg": _make_box(-0.41, 0.88, 0.33, 0.41),
    "right leg": _make_box(0.41, 0.88, 0.33, 0.41),
}
"""Signed distance (negative inside) of each part, in units of the radius. The area is near that of SHAPES."""


def measure_figure(x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance of the whole figure at coordinates in units of the radius."""
    return measure_parts(x, y).amin(0)


def measure_parts(x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance `4 ...` of each part."""
    return torch.stack([distance(x, y) for distance in PARTS.values()])


def paint_figure(colors: Mapping[str, Tensor]) -> Texture:
    """Return a texture with a color for each part; the lower half of the body is lighter."""

    def paint_parts(x: Tensor, y: Tensor) -> Tensor:
        nearest = F.one_hot(measure_parts(x, y).argmin(0), len(PARTS)).to(x)
        body = blend(0.14 - y, colors["body"], colors["body"] * 0.4 + 0.6)
        painted = [body if part == "body" else colors[part].expand_as(body) for part in PARTS]
        return torch.einsum("...p,p...c->...c", nearest, torch.stack(painted))

    return paint_parts
