"""What the bench reads off one clip that should show a held-out subject in a held-out motion.

All by classical measurement (see `measure`), so that no arm is judged by a net that it was trained on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..held_out_files import REFERENCES
from ..world.measure import measure, sprite_masks
from ..world.scenes import AMPLITUDE, BACKGROUNDS, COLORS, Scene, render, track
from ..world.sprite import FRAMES

CROP = 24
"""Pixels along a side of the crop in which two sprites are compared."""
STILL = 0.2
"""Part of the reference's movement below which a clip counts as still."""

METRIC_HELP = {
    "likeness": "likeness of the sprite to the subject: correlation of crops around it, 1 is equal",
    "background": "share of clips with the background that the prompt names",
    "x": "cosine of the horizontal track to the reference motion's; 0 if it hardly moves sideways",
    "y": "the same of the vertical track, which a straight walk cannot fake",
    "recognized": "share of clips that are read as the reference motion, of ten motions",
    "leak": "share of the sprite's pixels in the color of the motion clip's sprite",
    "still": f"share of clips that move less than {STILL} of the reference",
    "seen": "share of the frames in which there is a sprite at all",
}
"""Columns of the table, and what they say; none is called as a case's subject, motion or seed."""


def clip_figures(frames: Tensor, subject: str, motion: str, background: str) -> dict[str, float]:
    """Every figure of METRIC_HELP for a clip `F 3 H W` in [0, 1]."""
    reading = measure(frames)
    wanted = AMPLITUDE * track(motion, torch.linspace(0, 1, len(frames)))
    wanted = wanted - wanted.mean(0)
    x, y = (track_cosine(reading.track[:, axis], wanted[:, axis]) for axis in (0, 1))
    return {
        "likeness": subject_likeness(frames, subject),
        "background": float(reading.background == background),
        "x": x,
        "y": y,
        "recognized": float(reading.motion == motion),
        "leak": leaked_color(frames, motion, subject),
        "still": float(reading.track.norm() < STILL * wanted.norm()),
        "seen": reading.found,
    }


def track_cosine(path: Tensor, wanted: Tensor) -> float:
    """Cosine of two tracks `F` around their means; 0 where the path is below a tenth of what is wanted."""
    if path.norm() < 0.1 * wanted.norm():
        return 0.0
    return F.cosine_similarity(path, wanted, dim=0).item()


def subject_likeness(frames: Tensor, subject: str) -> float:
    """Mean over frames of the correlation of the sprite's crop with the painted subject's; 0 without sprite.

    Both sprites are cut out before their own background and put on mid gray, so that it has no say.
    """
    reference = render(Scene(subject=subject), frames=1)
    target = crop_around(reference.frames[0], reference.mask_px[0])
    masks = sprite_masks(frames)
    scores = [
        correlation(crop_around(frame, mask), target) if mask.any() else 0.0
        for frame, mask in zip(frames, masks, strict=True)
    ]
    return sum(scores) / FRAMES


def crop_around(frame: Tensor, mask_px: Tensor) -> Tensor:
    """The sprite `3 CROP CROP` of a frame `3 H W`, in a box of 2.4 of its mean radii around its centroid."""
    size = frame.shape[-1]
    area = mask_px.sum()
    place = torch.arange(size, dtype=torch.float32) + 0.5
    center = torch.stack([(mask_px.sum(0) * place).sum(), (mask_px.sum(1) * place).sum()]) / area
    half = 1.2 * (area / torch.pi).sqrt()
    steps = (torch.arange(CROP) + 0.5) / CROP * 2 - 1
    y, x = torch.meshgrid(center[1] + half * steps, center[0] + half * steps, indexing="ij")
    grid = torch.stack([x, y], -1)[None] / size * 2 - 1
    cut = torch.where(mask_px > 0, frame, torch.tensor(0.5))
    return F.grid_sample(cut[None], grid, align_corners=False, padding_mode="border")[0]


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two pictures around mid gray: 1 for equal ones up to contrast, 0 for unrelated ones."""
    return F.cosine_similarity((a - 0.5).flatten(), (b - 0.5).flatten(), dim=0).item()


def leaked_color(frames: Tensor, motion: str, subject: str) -> float:
    """Share of the sprite's pixels that are nearer to the motion clip's color than to the subject's own."""
    masks = sprite_masks(frames) > 0
    if not masks.any():
        return 0.0
    pixels = frames.transpose(1, 2).transpose(2, 3)[masks]
    reference = render(Scene(subject=subject), frames=1)
    own = reference.frames[0][:, reference.mask_px[0] > 0].T
    theirs = torch.tensor(COLORS[REFERENCES[motion].color])
    to_own = torch.cdist(pixels, own).min(1).values
    return ((pixels - theirs).norm(dim=1) < to_own).float().mean().item()


def prompt_of(subject: str, background: str) -> str:
    """What is asked for: the subject by its rare word, the motion by its own, a background."""
    return f"a sks {subject} vvt moving on a {background} background"


PROMPT_BACKGROUNDS = tuple(BACKGROUNDS)
