"""Painting of one moving sprite on a background, with its exact mask and its exact optical flow."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SIZE, FRAMES = 64, 17

SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: (x * x + y * y).sqrt() - 1,
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.886,
    "triangle": lambda x, y: torch.maximum(y - 0.72, 0.866 * x.abs() - 0.5 * y - 0.60),
    "cross": lambda x, y: torch.minimum(_measure_bar(x, y), _measure_bar(y, x)),
}
"""Signed distance (negative inside) of each shape, in units of the radius. Areas are equal within a fifth."""

Outline = Callable[[Tensor, Tensor], Tensor]
"""Signed distance `...` at coordinates in units of the radius."""
Texture = Callable[[Tensor, Tensor], Tensor]
"""RGB `... 3` in [0, 1] at coordinates in units of the radius."""
InnerFlow = Callable[[Tensor, Tensor], Tensor]
"""Sideways movement `F-1 H W` to the next frame, at coordinates `F H W`, all in units of the radius."""


class Painted(NamedTuple):
    """A painted clip with its mask and its optical flow."""

    frames: Tensor
    """`F 3 H W` in [0, 1]."""
    mask_px: Tensor
    """`F H W`, 1 on the sprite."""
    flow: Tensor
    """`F-1 2 H W`: movement (dx, dy) of each pixel to the next frame, in pixels; 0 on the background."""


def _measure_bar(x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance to one of the two bars of a cross."""
    return torch.maximum(x.abs() - 1.1, y.abs() - 0.42)


def cover_pixels(shape: str | Outline, centers: Tensor, radii: Tensor, size: int = SIZE) -> Tensor:
    """Return the share of each pixel that the sprite covers, `F H W` in [0, 1].

    The shape is one of SHAPES by name, or another outline. `centers` are `F 2` and `radii` are `F`, both in
    pixels.
    """
    x, y = _convert_to_local(centers, radii, size)
    outline = SHAPES[shape] if isinstance(shape, str) else shape
    return (0.5 - outline(x, y) * radii[:, None, None]).clamp(0, 1)


def paint(
    shape: str | Outline,
    centers: Tensor,
    radii: Tensor,
    texture: Texture,
    background: Tensor,
    size: int = SIZE,
    inner_flow: InnerFlow | None = None,
) -> Painted:
    """Paint a sprite at centers `F 2` with radii `F`, in pixels.

    The background (RGB in [0, 1]) is a little lighter at the bottom.
    `inner_flow` says how its parts move against its center, if they do.
    """
    alpha = cover_pixels(shape, centers, radii, size)
    light = 1 + 0.25 * ((torch.arange(size) + 0.5) / size - 0.5)
    behind = background * light.view(size, 1, 1)
    x, y = _convert_to_local(centers, radii, size)
    picture = alpha[..., None] * texture(x, y) + (1 - alpha[..., None]) * behind
    mask = (alpha > 0.5).float()
    flow = _compute_flow(x, y, centers, radii)
    if inner_flow is not None:
        flow[:, 0] += radii[:-1, None, None] * inner_flow(x, y)
    return Painted(picture.permute(0, 3, 1, 2).clamp(0, 1), mask, flow * mask[:-1, None])


def _convert_to_local(centers: Tensor, radii: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the coordinates `F H W` of all pixels relative to the center, in units of the radius."""
    pixel = torch.arange(size) + 0.5
    x = (pixel[None, None, :] - centers[:, 0, None, None]) / radii[:, None, None]
    y = (pixel[None, :, None] - centers[:, 1, None, None]) / radii[:, None, None]
    return torch.broadcast_tensors(x, y)


def _compute_flow(x: Tensor, y: Tensor, centers: Tensor, radii: Tensor) -> Tensor:
    # A pixel at local coordinates q moves with the center and is stretched with the radius.
    step, growth = centers.diff(dim=0), radii.diff()[:, None, None]
    dx = step[:, 0, None, None] + growth * x[:-1]
    dy = step[:, 1, None, None] + growth * y[:-1]
    return torch.stack([dx, dy], 1)


def paint_plain(color: Tensor) -> Texture:
    """Return a texture of one color."""
    return lambda x, y: color.expand(*x.shape, 3)


def paint_stripes(color: Tensor, other: Tensor, angle: float = math.pi / 4, waves: float = 5.0) -> Texture:
    """Return a texture of stripes in two colors; `waves` is 2 pi times their number in one radius."""
    return lambda x, y: blend(torch.sin(waves * (x * math.cos(angle) + y * math.sin(angle))), color, other)


def paint_halves(upper: Tensor, lower: Tensor) -> Texture:
    """Return a texture with one color above the center and another below."""
    return lambda x, y: blend(y, lower, upper)


def paint_bullseye(center: Tensor, rim: Tensor, radius: float = 0.5) -> Texture:
    """Return a texture with a disc of one color in another color; `radius` is in units of the sprite's."""
    return lambda x, y: blend(radius - (x * x + y * y).sqrt(), center, rim)


def blend(where: Tensor, color: Tensor, other: Tensor, sharpness: float = 14.0) -> Tensor:
    """Blend two colors: `color` where `where` is positive, else `other`; the edge is about a pixel wide."""
    amount = torch.sigmoid(sharpness * where)[..., None]
    return amount * color + (1 - amount) * other
