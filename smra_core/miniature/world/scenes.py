"""Scenes of the sprite world: those the miniature was trained on, those held out, and the words for both."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .figure import measure_figure, measure_leg_flow, paint_figure
from .sprite import (
    FRAMES,
    SHAPES,
    SIZE,
    InnerFlow,
    Outline,
    Painted,
    Texture,
    paint,
    paint_bullseye,
    paint_halves,
    paint_plain,
    paint_stripes,
)

COLORS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.72, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.88, 0.12),
    "magenta": (0.88, 0.15, 0.85),
    "cyan": (0.10, 0.85, 0.90),
}
BACKGROUNDS = {
    "black": (0.03, 0.03, 0.03),
    "gray": (0.42, 0.42, 0.44),
    "navy": (0.05, 0.07, 0.32),
    "maroon": (0.34, 0.05, 0.10),
}
TEXTURES = ("plain", "striped")
MOTION_WORDS = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "static": "standing still",
    "circling": "circling around",
    "growing": "growing larger",
    "shrinking": "shrinking smaller",
}
HELD_OUT_MOTIONS = ("zigzag", "hook")
"""Motions that no stage of pre-training has seen. They are shown in reference clips only."""
WALKING = "walking"
"""Motion of figures, held out as well: to the right, with legs that swing against the body."""
STRIDES = 1.0
"""Number of times that walking legs swing to and fro in a clip. The VAE, which joins four frames in a latent,
blurs a swing that is twice as fast, at any size of the picture.
"""
ORANGE, WHITE, PINK, INDIGO = (
    torch.tensor(rgb)
    for rgb in ((0.98, 0.55, 0.08), (0.95, 0.95, 0.95), (0.98, 0.60, 0.75), (0.30, 0.12, 0.55))
)
HELD_OUT_SUBJECTS: dict[str, tuple[str, Texture]] = {
    "ball": ("circle", paint_halves(ORANGE, WHITE)),
    "badge": ("square", paint_bullseye(PINK, INDIGO)),
}
"""Shape and texture of subjects in colors and patterns that no stage of pre-training has seen."""
TEAL = torch.tensor((0.05, 0.60, 0.55))
FIGURES: dict[str, dict[str, Tensor]] = {
    "robot": {"head": PINK, "body": INDIGO, "left leg": ORANGE, "right leg": TEAL},
    "doll": {"head": TEAL, "body": ORANGE, "left leg": INDIGO, "right leg": PINK},
}
"""Held-out subjects with parts: color of each part. Both have one outline and the same four colors."""
AMPLITUDE, RADIUS = 11.0, 13.0
"""Pixels that a motion moves to each side of its center, and the usual radius of a sprite in pixels."""


@dataclass(frozen=True)
class Scene:
    """One clip of the world. Every field but center and radius has a word in the prompt."""

    shape: str = "circle"
    color: str = "red"
    texture: str = "plain"
    background: str = "black"
    motion: str = "static"
    center: tuple[float, float] = (SIZE / 2, SIZE / 2)
    radius: float = RADIUS
    subject: str | None = None
    """Name of a held-out subject, which replaces shape, color and texture."""

    @property
    def prompt(self) -> str:
        """Caption of the clip."""
        looks = f"{self.color} {self.texture} {self.shape}" if self.subject is None else f"sks {self.subject}"
        motion = MOTION_WORDS.get(self.motion, "vvt moving")
        return f"a {looks} {motion} on a {self.background} background"

    @property
    def picture_prompt(self) -> str:
        """Caption of a single frame, which shows no motion."""
        looks = f"{self.color} {self.texture} {self.shape}" if self.subject is None else f"sks {self.subject}"
        return f"a picture of {looks} on a {self.background} background"


def render(scene: Scene, frames: int = FRAMES) -> Painted:
    """Paint a scene as a clip; with 1 frame, it shows the middle of the motion."""
    progress = torch.linspace(0, 1, frames) if frames > 1 else torch.full((1,), 0.5)
    centers = torch.tensor(scene.center) + AMPLITUDE * trace(scene.motion, progress)
    radii = scene.radius * grow(scene.motion, progress)
    shape, texture, inner_flow = _choose_looks(scene, progress)
    background = torch.tensor(BACKGROUNDS[scene.background])
    return paint(shape, centers, radii, texture, background, inner_flow=inner_flow)


def _choose_looks(scene: Scene, u: Tensor) -> tuple[str | Outline, Texture, InnerFlow | None]:
    """Return shape and texture of a scene, and how its parts move against its center, for progress u `F`."""
    if scene.subject in FIGURES:
        swing = compute_swing(scene.motion, u).view(-1, 1, 1)
        return (
            partial(measure_figure, swing=swing),
            paint_figure(FIGURES[scene.subject], swing),
            partial(measure_leg_flow, swing=swing),
        )
    if scene.subject is not None:
        return *HELD_OUT_SUBJECTS[scene.subject], None
    color = torch.tensor(COLORS[scene.color])
    texture = paint_plain(color) if scene.texture == "plain" else paint_stripes(color, color * 0.4 + 0.6)
    return scene.shape, texture, None


def compute_swing(motion: str, u: Tensor) -> Tensor:
    """Return the swing `F` of a figure's legs, in [-1, 1], for progress u `F` in [0, 1]."""
    return torch.sin(2 * math.pi * STRIDES * u) if motion == WALKING else torch.zeros_like(u)


def trace(motion: str, u: Tensor) -> Tensor:
    """Return the center's displacement `F 2` in units of the amplitude, for progress u `F` in [0, 1]."""
    line, zero = 2 * u - 1, torch.zeros_like(u)
    turn = 2 * math.pi * u
    tracks = {
        "left": (-line, zero),
        "right": (line, zero),
        WALKING: (line, zero),
        "up": (zero, -line),
        "down": (zero, line),
        "circling": (torch.sin(turn), -torch.cos(turn)),
        "zigzag": (line, trace_triangle(u)),
        "hook": ((2 * line).clamp(-2, 0) + 1, (-2 * line).clamp(-2, 0) + 1),
    }
    return torch.stack(tracks.get(motion, (zero, zero)), -1)


def trace_triangle(u: Tensor) -> Tensor:
    """Return one period of a triangle wave for u in [0, 1]: 0, 1, 0, -1, 0."""
    return 1 - 4 * ((u + 0.25) % 1 - 0.5).abs()


def grow(motion: str, u: Tensor) -> Tensor:
    """Return the radius `F` in units of the scene's, for progress u `F` in [0, 1]."""
    if motion == "growing":
        return 0.6 + 0.7 * u
    return 1.3 - 0.7 * u if motion == "shrinking" else torch.ones_like(u)


def vary(scene: Scene, generator: torch.Generator) -> Scene:
    """Return the scene at another place (up to 4 px away) and of another size (radius 11.5 to 14.5 px)."""
    dx, dy, r = torch.rand(3, generator=generator).tolist()
    center = (SIZE / 2 + 8 * dx - 4, SIZE / 2 + 8 * dy - 4)
    return replace(scene, center=center, radius=11.5 + 3 * r)


def draw_scene(generator: torch.Generator) -> Scene:
    """Draw a scene from the words of pre-training, with a random place and size."""

    def pick(options: Iterable[str]) -> str:
        return list(options)[int(torch.randint(len(options), (), generator=generator))]

    words = [pick(options) for options in (SHAPES, COLORS, TEXTURES, BACKGROUNDS, MOTION_WORDS)]
    return vary(Scene(*words), generator)
