"""Clips of random textures on random tracks: what the video VAE and the teachers learn from.

They know nothing of the world's words, nor of what the world holds out: colors, patterns and tracks are
drawn from families far wider than the world's.
"""

import math

import torch
from torch import Tensor

from .scenes import BACKGROUNDS, COLORS
from .sprite import FRAMES, SHAPES, Painted, Texture, blend, paint


def random_clip(generator: torch.Generator, frames: int = FRAMES, largest: float = 13.0) -> Painted:
    """One sprite of random looks, of a radius from 7 to `largest` pixels, on a random smooth, straight or
    broken track.
    """
    draw = Draw(generator)
    u = torch.linspace(0, 1, frames)
    swell = draw.between(-0.5, 0.5) if draw.chance(0.4) else 0.0
    radii = draw.between(7, largest) * (1 + swell * (2 * u - 1))
    background = _background(draw)
    return paint(draw.name(SHAPES), _track(draw, u), radii, _texture(draw), background)


def random_views(generator: torch.Generator, count: int) -> list[Painted]:
    """Pictures (clips of one frame) of one random sprite, each elsewhere, of another size, before another
    background.
    """
    draw = Draw(generator)
    shape, texture = draw.name(SHAPES), _texture(draw)

    def picture() -> Painted:
        center = torch.tensor([[draw.between(20, 44), draw.between(20, 44)]])
        radius = torch.tensor([draw.between(9, 16)])
        return paint(shape, center, radius, texture, _background(draw))

    return [picture() for _ in range(count)]


def _background(draw: "Draw") -> Tensor:
    return draw.choice(BACKGROUNDS) if draw.chance(0.6) else 0.6 * draw.rgb()


class Draw:
    """Random choices from one generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, probability: float) -> bool:
        return self.between(0, 1) < probability

    def name(self, options: dict) -> str:
        return list(options)[int(self.between(0, len(options)))]

    def choice(self, options: dict) -> Tensor:
        return torch.tensor(options[self.name(options)])

    def rgb(self) -> Tensor:
        return torch.rand(3, generator=self.generator)

    def color(self) -> Tensor:
        return self.choice(COLORS) if self.chance(0.5) else self.rgb()


def _texture(draw: Draw) -> Texture:
    first, second, third = draw.color(), draw.color(), draw.color()
    pattern = _pattern(draw)
    spot = (draw.between(-0.4, 0.4), draw.between(-0.4, 0.4)) if draw.chance(0.3) else None

    def texture(x: Tensor, y: Tensor) -> Tensor:
        rgb = blend(pattern(x, y), first, second)
        if spot is None:
            return rgb
        inside = 0.35 - ((x - spot[0]) ** 2 + (y - spot[1]) ** 2).sqrt()
        amount = torch.sigmoid(14 * inside)[..., None]
        return amount * third + (1 - amount) * rgb

    return texture


def _pattern(draw: Draw):
    angle, waves, phase = draw.between(0, math.pi), draw.between(1.5, 8), draw.between(0, 2 * math.pi)
    ring, offset = draw.between(0.3, 0.7), draw.between(-0.4, 0.4)
    patterns = {
        "one color": lambda x, y: torch.ones_like(x),
        "stripes": lambda x, y: torch.sin(waves * (x * math.cos(angle) + y * math.sin(angle)) + phase),
        "halves": lambda x, y: x * math.cos(angle) + y * math.sin(angle) + offset,
        "ring": lambda x, y: (x * x + y * y).sqrt() - ring,
        "checks": lambda x, y: torch.sin(0.7 * waves * x + phase) * torch.sin(0.7 * waves * y),
    }
    return patterns[draw.name(patterns)]


def _track(draw: Draw, u: Tensor) -> Tensor:
    middle = torch.tensor([draw.between(20, 44), draw.between(20, 44)])
    kind = draw.between(0, 1)
    if kind < 0.4:
        return middle + _wave(draw, u) + _wave(draw, u)
    return middle + (_broken_line(draw, u) if kind < 0.75 else _straight(draw, u))


def _wave(draw: Draw, u: Tensor) -> Tensor:
    def axis() -> Tensor:
        turns, phase = draw.between(0.2, 1.6), draw.between(0, 2 * math.pi)
        return draw.between(0, 11) * torch.sin(2 * math.pi * turns * u + phase)

    return torch.stack([axis(), axis()], -1)


def _broken_line(draw: Draw, u: Tensor) -> Tensor:
    corners = 30 * (torch.rand(int(draw.between(2, 6)), 2, generator=draw.generator) - 0.5)
    place = u * (len(corners) - 1)
    before = place.floor().long().clamp(max=len(corners) - 2)
    part = (place - before)[:, None]
    return corners[before] * (1 - part) + corners[before + 1] * part


def _straight(draw: Draw, u: Tensor) -> Tensor:
    angle, reach = draw.between(0, 2 * math.pi), draw.between(0, 16)
    return (2 * u - 1)[:, None] * reach * torch.tensor([math.cos(angle), math.sin(angle)])
