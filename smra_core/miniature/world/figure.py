"""Figures: sprites of a head, a body and two legs, each in a color of its own. The legs can swing.

Neither the outline nor the mean color tells two figures of the same colors apart.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .sprite import Outline, Texture, blend

HIP = 0.47
"""Height of the hips, at which a swinging leg turns, in units of the radius below the center."""
STRIDE = 0.75
"""Sideways movement of a leg for each unit of length below the hip, at a swing of 1."""


def _make_box(x: float, y: float, half_width: float, half_height: float) -> Outline:
    return lambda u, v: torch.maximum((u - x).abs() - half_width, (v - y).abs() - half_height)


PARTS: dict[str, Outline] = {
    "head": lambda x, y: (x * x + (y + 0.74) ** 2).sqrt() - 0.54,
    "body": _make_box(0, 0.14, 0.74, 0.40),
    "left leg": _make_box(-0.41, 0.88, 0.33, 0.41),
    "right leg": _make_box(0.41, 0.88, 0.33, 0.41),
}
"""Signed distance (negative inside) of each part, in units of the radius. The area is near that of SHAPES."""
STEPS = {"head": 0.0, "body": 0.0, "left leg": 1.0, "right leg": -1.0}
"""Direction in which each part moves at a swing of 1: the feet pass each other; at -1 they are apart."""


def measure_figure(x: Tensor, y: Tensor, swing: Tensor | float = 0.0) -> Tensor:
    """Return the signed distance of the whole figure at coordinates in units of the radius.

    `swing`, in [-1, 1], says where the legs are; it broadcasts to the coordinates.
    """
    return measure_parts(x, y, swing).amin(0)


def measure_parts(x: Tensor, y: Tensor, swing: Tensor | float = 0.0) -> Tensor:
    """Return the signed distance `4 ...` of each part."""
    reach = STRIDE * (y - HIP)
    return torch.stack([distance(x - STEPS[part] * swing * reach, y) for part, distance in PARTS.items()])


def measure_leg_flow(x: Tensor, y: Tensor, swing: Tensor) -> Tensor:
    """Return how far `F-1 ...` each place of the figure moves sideways against the body to the next frame.

    Coordinates `F ...` and movement are in units of the radius; `swing` is `F ...`.
    """
    nearest = find_nearest(x, y, swing)[:-1]
    directions = nearest @ nearest.new_tensor(list(STEPS.values()))
    return directions * swing.diff(dim=0) * STRIDE * (y - HIP)[:-1]


def find_nearest(x: Tensor, y: Tensor, swing: Tensor | float = 0.0) -> Tensor:
    """Return 1 for the part that each place `...` is nearest to, else 0: `... 4`.

    Where the legs cross, the left one is in front.
    """
    head, body, left, right = measure_parts(x, y, swing)
    right = torch.where((left < 0) & (right < 0), 1.0, right)
    return F.one_hot(torch.stack([head, body, left, right]).argmin(0), len(PARTS)).to(x)


def paint_figure(colors: Mapping[str, Tensor], swing: Tensor | float = 0.0) -> Texture:
    """Return a texture with a color for each part; the lower half of the body is lighter."""

    def paint_parts(x: Tensor, y: Tensor) -> Tensor:
        body = blend(0.14 - y, colors["body"], colors["body"] * 0.4 + 0.6)
        painted = [body if part == "body" else colors[part].expand_as(body) for part in PARTS]
        return torch.einsum("...p,p...c->...c", find_nearest(x, y, swing), torch.stack(painted))

    return paint_parts
