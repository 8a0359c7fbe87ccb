"""Clips of random things of several parts that swing against each other, on which the decoder is trained.

Number, shape, place, color and swing of the parts are drawn at random; none is a figure of the world.
"""

import math

import torch
from torch import Tensor

from .random_clips import RandomChoices, draw_background, draw_texture, draw_track
from .sprite import FRAMES, SHAPES, Texture, paint_background, paint_over, paint_plain


def draw_parts_clip(generator: torch.Generator, frames: int = FRAMES) -> Tensor:
    """Paint frames `F 3 H W` in [0, 1] of two to five parts on one random track, one over the other."""
    choices = RandomChoices(generator)
    u = torch.linspace(0, 1, frames)
    track, radius = draw_track(choices, u), choices.pick(9, 14)
    picture = paint_background(draw_background(choices))
    for _ in range(int(choices.pick(2, 6))):
        place = torch.tensor([choices.pick(-0.7, 0.7), choices.pick(-0.7, 0.7)])
        centers = track + radius * (place + _draw_swing(choices, u))
        radii = torch.full_like(u, radius * choices.pick(0.35, 0.75))
        texture = _draw_part_texture(choices)
        picture, _ = paint_over(picture, choices.pick_name(SHAPES), centers, radii, texture)
    return picture.permute(0, 3, 1, 2).clamp(0, 1)


def _draw_swing(choices: RandomChoices, u: Tensor) -> Tensor:
    """Draw offsets `F 2` of a part against the others, in units of the radius; half of the parts stay."""
    if choices.decide(0.5):
        return torch.zeros(len(u), 2)
    angle, turns = choices.pick(0, 2 * math.pi), choices.pick(0.5, 2.5)
    swing = choices.pick(0.1, 0.6) * torch.sin(2 * math.pi * (turns * u + choices.pick(0, 1)))
    return swing[:, None] * torch.tensor([math.cos(angle), math.sin(angle)])


def _draw_part_texture(choices: RandomChoices) -> Texture:
    """Draw the look of a part: one color in most cases, a pattern otherwise."""
    return paint_plain(choices.pick_color()) if choices.decide(0.7) else draw_texture(choices)
