"""Clips of random textures on random tracks, on which the video VAE and the encoders are trained.

They use neither the world's words nor what the world holds out: colors, patterns and tracks are drawn from
families far wider than the world's.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .scenes import BACKGROUNDS, COLORS
from .sprite import FRAMES, SHAPES, Painted, Texture, blend, paint


def draw_clip(generator: torch.Generator, frames: int = FRAMES, largest: float = 13.0) -> Painted:
    """Paint a sprite of random looks on a random track, smooth, straight or broken.

    Its radius is between 7 and `largest` pixels before it grows or shrinks.
    """
    choices = RandomChoices(generator)
    u = torch.linspace(0, 1, frames)
    swell = choices.pick(-0.5, 0.5) if choices.decide(0.4) else 0.0
    radii = choices.pick(7, largest) * (1 + swell * (2 * u - 1))
    background = _draw_background(choices)
    return paint(
        choices.pick_name(SHAPES), _draw_track(choices, u), radii, _draw_texture(choices), background
    )


def draw_views(generator: torch.Generator, count: int) -> list[Painted]:
    """Paint pictures (clips of one frame) of one random sprite, each at another place, in another size and on
    another background.
    """
    choices = RandomChoices(generator)
    shape, texture = choices.pick_name(SHAPES), _draw_texture(choices)

    def paint_view() -> Painted:
        center = torch.tensor([[choices.pick(20, 44), choices.pick(20, 44)]])
        radius = torch.tensor([choices.pick(9, 16)])
        return paint(shape, center, radius, texture, _draw_background(choices))

    return [paint_view() for _ in range(count)]


def _draw_background(choices: "RandomChoices") -> Tensor:
    return choices.pick_rgb(BACKGROUNDS) if choices.decide(0.6) else 0.6 * choices.draw_rgb()


class RandomChoices:
    """Random choices with one generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def pick(self, low: float, high: float) -> float:
        """Pick a number between `low` and `high`, all with equal chances."""
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def decide(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.pick(0, 1) < probability

    def pick_name(self, options: dict) -> str:
        """Pick a key of a table."""
        return list(options)[int(self.pick(0, len(options)))]

    def pick_rgb(self, options: dict) -> Tensor:
        """Pick a color `3` of a table of colors."""
        return torch.tensor(options[self.pick_name(options)])

    def draw_rgb(self) -> Tensor:
        """Draw any color: RGB `3` in [0, 1]."""
        return torch.rand(3, generator=self.generator)

    def pick_color(self) -> Tensor:
        """Pick a color of the world half of the time, any color otherwise."""
        return self.pick_rgb(COLORS) if self.decide(0.5) else self.draw_rgb()


def _draw_texture(choices: RandomChoices) -> Texture:
    first, second, third = choices.pick_color(), choices.pick_color(), choices.pick_color()
    pattern = _draw_pattern(choices)
    spot = (choices.pick(-0.4, 0.4), choices.pick(-0.4, 0.4)) if choices.decide(0.3) else None

    def paint_texture(x: Tensor, y: Tensor) -> Tensor:
        rgb = blend(pattern(x, y), first, second)
        if spot is None:
            return rgb
        inside = 0.35 - ((x - spot[0]) ** 2 + (y - spot[1]) ** 2).sqrt()
        amount = torch.sigmoid(14 * inside)[..., None]
        return amount * third + (1 - amount) * rgb

    return paint_texture


def _draw_pattern(choices: RandomChoices) -> Callable[[Tensor, Tensor], Tensor]:
    """Draw a pattern: a function of local coordinates that is positive where the first color is shown."""
    angle, waves = choices.pick(0, math.pi), choices.pick(1.5, 8)
    phase = choices.pick(0, 2 * math.pi)
    ring, offset = choices.pick(0.3, 0.7), choices.pick(-0.4, 0.4)
    patterns = {
        "one color": lambda x, y: torch.ones_like(x),
        "stripes": lambda x, y: torch.sin(waves * (x * math.cos(angle) + y * math.sin(angle)) + phase),
        "halves": lambda x, y: x * math.cos(angle) + y * math.sin(angle) + offset,
        "ring": lambda x, y: (x * x + y * y).sqrt() - ring,
        "checks": lambda x, y: torch.sin(0.7 * waves * x + phase) * torch.sin(0.7 * waves * y),
    }
    return patterns[choices.pick_name(patterns)]


def _draw_track(choices: RandomChoices, u: Tensor) -> Tensor:
    """Draw centers `F 2` in pixels on a smooth, broken or straight track, for progress u `F` in [0, 1]."""
    middle = torch.tensor([choices.pick(20, 44), choices.pick(20, 44)])
    kind = choices.pick(0, 1)
    if kind < 0.4:
        return middle + _draw_wave(choices, u) + _draw_wave(choices, u)
    return middle + (_draw_broken_line(choices, u) if kind < 0.75 else _draw_straight(choices, u))


def _draw_wave(choices: RandomChoices, u: Tensor) -> Tensor:
    def draw_axis() -> Tensor:
        turns, phase = choices.pick(0.2, 1.6), choices.pick(0, 2 * math.pi)
        return choices.pick(0, 11) * torch.sin(2 * math.pi * turns * u + phase)

    return torch.stack([draw_axis(), draw_axis()], -1)


def _draw_broken_line(choices: RandomChoices, u: Tensor) -> Tensor:
    corners = 30 * (torch.rand(int(choices.pick(2, 6)), 2, generator=choices.generator) - 0.5)
    place = u * (len(corners) - 1)
    before = place.floor().long().clamp(max=len(corners) - 2)
    part = (place - before)[:, None]
    return corners[before] * (1 - part) + corners[before + 1] * part


def _draw_straight(choices: RandomChoices, u: Tensor) -> Tensor:
    angle, reach = choices.pick(0, 2 * math.pi), choices.pick(0, 16)
    return (2 * u - 1)[:, None] * reach * torch.tensor([math.cos(angle), math.sin(angle)])
