"""Metrics of the bench for a clip that should show a held-out subject in a held-out motion.

All are classical measurements (see `measure`), so that no variant is judged by a network that it was trained
with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..held_out_files import REFERENCES
from ..world.measure import correlate, crop_around, find_sprite, measure
from ..world.scenes import AMPLITUDE, BACKGROUNDS, COLORS, Scene, render, trace

STILL = 0.2
"""Share of the reference's movement below which a clip counts as still."""

PROMPT_BACKGROUNDS = tuple(BACKGROUNDS)
"""Backgrounds that the prompts of a case name in turn."""

METRIC_HELP = {
    "likeness": "likeness of the sprite to the subject: correlation of crops around it, 1 is equal",
    "background": "share of clips with the background that the prompt names",
    "x": "cosine of the horizontal track to the reference motion's; 0 if it hardly moves sideways",
    "y": "the same of the vertical track, which a straight walk cannot match",
    "recognized": "share of clips that are recognized as the reference motion, of ten motions",
    "leak": "share of the sprite's pixels in the color of the motion clip's sprite",
    "still": f"share of clips that move less than {STILL} of the reference",
    "seen": "share of the frames in which a sprite is seen",
}
"""Column of the table -> its explanation. No column is named like a field of a case: subject, motion, seed.
"""


def measure_clip(frames: Tensor, subject: str, motion: str, background: str) -> dict[str, float]:
    """Compute the metrics of METRIC_HELP for a clip `F 3 H W` in [0, 1]."""
    reading = measure(frames)
    wanted = AMPLITUDE * trace(motion, torch.linspace(0, 1, len(frames)))
    wanted = wanted - wanted.mean(0)
    x, y = (compare_tracks(reading.track[:, axis], wanted[:, axis]) for axis in (0, 1))
    return {
        "likeness": measure_likeness(frames, subject),
        "background": float(reading.background == background),
        "x": x,
        "y": y,
        "recognized": float(reading.motion == motion),
        "leak": measure_leak(frames, motion, subject),
        "still": float(reading.track.norm() < STILL * wanted.norm()),
        "seen": reading.found,
    }


def compare_tracks(path: Tensor, wanted: Tensor) -> float:
    """Return the cosine of two tracks `F` around their means; 0 if the path is shorter than a tenth of the
    wanted.
    """
    if path.norm() < 0.1 * wanted.norm():
        return 0.0
    return F.cosine_similarity(path, wanted, dim=0).item()


def measure_likeness(frames: Tensor, subject: str) -> float:
    """Return the mean over frames of the correlation of the sprite with the painted subject; 0 without a
    sprite.

    Both sprites are cut out and put on mid gray, so that the background does not count.
    """
    reference = render(Scene(subject=subject), frames=1)
    target = crop_around(reference.frames[0], reference.mask_px[0])
    masks = find_sprite(frames)
    scores = [
        correlate(crop_around(frame, mask), target) if mask.any() else 0.0
        for frame, mask in zip(frames, masks, strict=True)
    ]
    return sum(scores) / len(frames)


def measure_leak(frames: Tensor, motion: str, subject: str) -> float:
    """Return the share of the sprite's pixels that are nearer to the motion clip's color than to the
    subject's.
    """
    masks = find_sprite(frames) > 0
    if not masks.any():
        return 0.0
    pixels = frames.transpose(1, 2).transpose(2, 3)[masks]
    reference = render(Scene(subject=subject), frames=1)
    own = reference.frames[0][:, reference.mask_px[0] > 0].T
    theirs = torch.tensor(COLORS[REFERENCES[motion].color])
    to_own = torch.cdist(pixels, own).min(1).values
    return ((pixels - theirs).norm(dim=1) < to_own).float().mean().item()


def make_prompt(subject: str, background: str) -> str:
    """Return the prompt with the subject's rare word, the motion's rare word and a background."""
    return f"a sks {subject} vvt moving on a {background} background"
