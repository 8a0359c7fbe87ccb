"""Copies of a motion's clips in other colors: they move as the clips do, and share less of their looks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .motion_clip import MotionClip

RANGES = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 0.5}
"""Ranges in which kornia turns the colors of a copy; a hue of 0.5 is any."""


def add_color_copies(clips: Sequence[MotionClip], copies: int, seed: int) -> list[MotionClip]:
    """Return each clip, followed by so many copies of it in other colors."""
    colored = change_colors([clip.frames for clip in clips], copies, seed)
    return [
        each
        for clip, frames_of_copies in zip(clips, colored, strict=True)
        for each in (clip, *_make_copies(clip, frames_of_copies))
    ]


def _make_copies(clip: MotionClip, frames_of_copies: Sequence[Tensor]) -> list[MotionClip]:
    return [
        clip._replace(name=f"{clip.name} (colors {number})", frames=frames, is_color_copy=True)
        for number, frames in enumerate(frames_of_copies, 1)
    ]


@torch.no_grad()
def change_colors(clips: Sequence[Tensor], copies: int, seed: int) -> list[list[Tensor]]:
    """Return copies of each clip `F 3 H W`, RGB in [0, 1], whose colors are turned at random.

    All frames of a copy have the same change. The copies depend on the seed and on the number of clips before
    theirs; torch's own random state stays as it was.
    """
    if not copies:
        return [[] for _ in clips]
    from kornia.augmentation import ColorJitter

    jitter = ColorJitter(**RANGES, same_on_batch=True, p=1.0)
    with torch.random.fork_rng(devices=[]):  # because kornia draws from torch's own random state
        torch.manual_seed(seed)
        return [[jitter(frames).clamp(0, 1).contiguous() for _ in range(copies)] for frames in clips]


def describe_copies(clips: int, copies: int) -> str:
    """Return how many clips there are, and how many copies of them in other colors, in words."""
    words = [f"{clips} clip{'s' if clips > 1 else ''}"]
    if copies:
        words.append(f"{copies} {'copies' if copies > 1 else 'copy'} in other colors")
    return " and ".join(words)
