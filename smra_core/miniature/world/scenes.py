"""The sprite world: what the miniature was trained on, what was held out from it, and how both are named."""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .sprite import FRAMES, SHAPES, SIZE, Painted, Texture, bullseye, paint, plain, striped, two_tone

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
"""Seen by no stage of pre-training: only ever reference clips."""
ORANGE, WHITE, PINK, INDIGO = (
    torch.tensor(rgb)
    for rgb in ((0.98, 0.55, 0.08), (0.95, 0.95, 0.95), (0.98, 0.60, 0.75), (0.30, 0.12, 0.55))
)
HELD_OUT_SUBJECTS: dict[str, tuple[str, Texture]] = {
    "ball": ("circle", two_tone(ORANGE, WHITE)),
    "badge": ("square", bullseye(PINK, INDIGO)),
}
"""Shape and texture of subjects in colors and patterns that no stage of pre-training has seen."""
AMPLITUDE, RADIUS = 11.0, 13.0
"""Pixels that a motion goes to each side of its middle, and a sprite's usual radius."""


@dataclass(frozen=True)
class Scene:
    """One clip of the world; every field has a word in the prompt, except place and size."""

    shape: str = "circle"
    color: str = "red"
    texture: str = "plain"
    background: str = "black"
    motion: str = "static"
    center: tuple[float, float] = (SIZE / 2, SIZE / 2)
    radius: float = RADIUS
    subject: str | None = None
    """A held-out subject in place of shape, color and texture."""

    def prompt(self) -> str:
        looks = f"{self.color} {self.texture} {self.shape}" if self.subject is None else f"sks {self.subject}"
        motion = MOTION_WORDS.get(self.motion, "vvt moving")
        return f"a {looks} {motion} on a {self.background} background"

    def picture_prompt(self) -> str:
        """Caption of one frame, which has no motion."""
        looks = f"{self.color} {self.texture} {self.shape}" if self.subject is None else f"sks {self.subject}"
        return f"a picture of {looks} on a {self.background} background"


def render(scene: Scene, frames: int = FRAMES) -> Painted:
    """Paint a scene; a static one of 1 frame is a picture."""
    progress = torch.linspace(0, 1, frames) if frames > 1 else torch.full((1,), 0.5)
    centers = torch.tensor(scene.center) + AMPLITUDE * track(scene.motion, progress)
    radii = scene.radius * growth(scene.motion, progress)
    shape, texture = _looks(scene)
    return paint(shape, centers, radii, texture, torch.tensor(BACKGROUNDS[scene.background]))


def _looks(scene: Scene) -> tuple[str, Texture]:
    if scene.subject is not None:
        return HELD_OUT_SUBJECTS[scene.subject]
    color = torch.tensor(COLORS[scene.color])
    texture = plain(color) if scene.texture == "plain" else striped(color, color * 0.4 + 0.6)
    return scene.shape, texture


def track(motion: str, u: Tensor) -> Tensor:
    """Displacement of the center `F 2` in amplitudes, for progress u in [0, 1]."""
    line, zero = 2 * u - 1, torch.zeros_like(u)
    turn = 2 * math.pi * u
    tracks = {
        "left": (-line, zero),
        "right": (line, zero),
        "up": (zero, -line),
        "down": (zero, line),
        "circling": (torch.sin(turn), -torch.cos(turn)),
        "zigzag": (line, triangle_wave(u)),
        "hook": ((2 * line).clamp(-2, 0) + 1, (-2 * line).clamp(-2, 0) + 1),
    }
    return torch.stack(tracks.get(motion, (zero, zero)), -1)


def triangle_wave(u: Tensor) -> Tensor:
    """One period: 0, 1, 0, -1, 0."""
    return 1 - 4 * ((u + 0.25) % 1 - 0.5).abs()


def growth(motion: str, u: Tensor) -> Tensor:
    """Radius in units of the scene's, for progress u."""
    if motion == "growing":
        return 0.6 + 0.7 * u
    return 1.3 - 0.7 * u if motion == "shrinking" else torch.ones_like(u)


def all_scenes() -> list[Scene]:
    """Every combination of words that pre-training draws from."""
    words = itertools.product(SHAPES, COLORS, TEXTURES, BACKGROUNDS, MOTION_WORDS)
    return [Scene(*combination) for combination in words]


def vary(scene: Scene, generator: torch.Generator) -> Scene:
    """The scene at another place (up to 4 px away) and of another size (11.5 to 14.5 px)."""
    dx, dy, r = torch.rand(3, generator=generator).tolist()
    center = (SIZE / 2 + 8 * dx - 4, SIZE / 2 + 8 * dy - 4)
    return replace(scene, center=center, radius=11.5 + 3 * r)


def random_scene(generator: torch.Generator) -> Scene:
    def pick(options):
        return list(options)[int(torch.randint(len(options), (), generator=generator))]

    words = [pick(options) for options in (SHAPES, COLORS, TEXTURES, BACKGROUNDS, MOTION_WORDS)]
    return vary(Scene(*words), generator)
