"""The leak meter: does a motion LoRA bring along the look of the clip that it was trained on?

Videos of neutral prompts are made twice from the same noise, with the motion LoRA alone and without any. The
meter compares what moves in them with what moves in the clip, its actor, and what stands still with the
clip's background, by DINOv2's patch features. It is not in the paper, which shows copied backgrounds as
pictures only.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.dinov2 import DinoV2
from ..encoders.sea_raft import SeaRaft
from ..wan.spec import LATENTS_21
from .evaluate import measure_flow
from .interval import Interval, estimate_ratio
from .metrics import STILL

SAMPLED_FRAMES = 9
"""Most frames of a video whose patch features are computed, spread evenly."""
MOVING_SHARE, STILL_SHARE = 0.5, 0.1
"""Shares of the fastest patch's speed, above which a patch moves and below which it stands still."""
LEAST_ROOM = 0.05
"""Smallest distance between base and clip that the leak divides by: they may be alike already."""
LARGEST_LEAK = 0.1
"""Leak above which the verdict is that the LoRA leaks."""
WAY_OUT = (
    "Train fewer steps or keep an earlier checkpoint (--keep-every), use the paper's layers (--plan motion), "
    "or train at high noise (--noise-range motion)"
)


class RegionFeatures(NamedTuple):
    """Mean patch features `D` of what moves in a video and of what stands still."""

    actor: Tensor
    """Mean over the moving patches; over all, where nothing moves."""
    background: Tensor | None
    """Mean over the still patches; None where everything moves."""


class Leak(NamedTuple):
    """Leak of a motion LoRA: the share of the way from the base model's look to the clip's.

    0 is the base's look, 1 the clip's.
    """

    actor: Interval
    background: Interval | None
    """None where the clip, or every video, has no still part."""
    overall: Interval
    """Mean of both in each seed, which compares LoRAs: where a prompt leaves one of them open, every LoRA
    goes most of the way there.
    """

    @property
    def worst(self) -> Interval:
        """The larger of the two leaks, which the verdict is on."""
        if self.background is None:
            return self.actor
        return max(self.actor, self.background, key=lambda one: one.mean)

    def describe(self) -> str:
        """Return the numbers, the verdict, and the setting to change."""
        numbers = f"Leak {self.overall}: actor {self.actor}, background {self.background or 'not measured'}."
        name = "actor" if self.worst is self.actor else "background"
        if self.worst.low > LARGEST_LEAK:
            return (
                f"{numbers} It leaks: the {name} goes {100 * self.worst.mean:.0f} % of the way to the "
                f"clip's. {WAY_OUT}."
            )
        if self.worst.high <= LARGEST_LEAK:
            return f"{numbers} It does not leak: at most {100 * LARGEST_LEAK:.0f} % of the way to the clip."
        return f"{numbers} This many seeds cannot tell. Measure more of them (--seeds)."


class LeakMeter:
    """Meter of the leak of a motion LoRA that was trained on one clip."""

    def __init__(self, dinov2: DinoV2, sea_raft: SeaRaft, clip: Tensor):
        """Take the clip `F 3 H W` in [0, 1]; its sides must be multiples of 16 px."""
        self.dinov2, self.sea_raft = dinov2, sea_raft
        self.clip = self.extract_regions(clip)

    @torch.no_grad()
    def extract_regions(self, video: Tensor) -> RegionFeatures:
        """Return the features of what moves and of what stands still in a video `F 3 H W` in [0, 1]."""
        token = LATENTS_21.token_pixels
        flow = measure_flow(self.sea_raft, video)
        count = min(SAMPLED_FRAMES, len(flow))
        sampled = torch.linspace(0, len(flow) - 1, count).round().long()
        device = next(self.dinov2.parameters()).device
        features = self.dinov2.extract_patch_features(video[sampled].to(device)).cpu().flatten(0, 1)
        speed = F.avg_pool2d(flow[sampled].norm(dim=1, keepdim=True), token).flatten()
        fastest = max(speed.max().item(), STILL)
        moving, still = speed > MOVING_SHARE * fastest, speed < STILL_SHARE * fastest
        actor = features[moving] if moving.any() else features
        return RegionFeatures(actor.mean(0), features[still].mean(0) if still.any() else None)

    def measure(self, videos: Iterable[Tensor], bases: Iterable[Tensor]) -> Leak:
        """Return the leak over seeds: each entry is `B F 3 H W` in [0, 1], the videos of one seed.

        `videos` are made with the motion LoRA alone, `bases` without any, from the same noise and prompts.
        Raise ValueError for fewer than two seeds.
        """
        return combine_seeds([self.measure_seed(*seed) for seed in zip(videos, bases, strict=True)])

    def measure_seed(self, videos: Tensor, bases: Tensor) -> Tensor:
        """Return the mean leaks (actor, background) `2` of the videos `B F 3 H W` of one seed."""
        return torch.stack([self._measure_pair(*pair) for pair in zip(videos, bases, strict=True)]).nanmean(0)

    def _measure_pair(self, video: Tensor, base: Tensor) -> Tensor:
        """Return the leaks (actor, background) `2` of a video; NaN where a part was not found."""
        with_lora, without = self.extract_regions(video), self.extract_regions(base)
        return torch.stack(
            [measure_share(*parts) for parts in zip(with_lora, without, self.clip, strict=True)]
        )


def combine_seeds(leaks: Sequence[Tensor]) -> Leak:
    """Return the leak with its intervals from the leaks (actor, background) `2` of each seed."""
    actor, background = torch.stack(list(leaks)).double().unbind(1)
    known = background[background.isfinite()]
    return Leak(
        estimate_ratio(actor.tolist()),
        estimate_ratio(known.tolist()) if len(known) >= 2 else None,
        estimate_ratio(torch.stack([actor, background], 1).nanmean(1).tolist()),
    )


def measure_share(video: Tensor | None, base: Tensor | None, clip: Tensor | None) -> Tensor:
    """Return which share of the way from the base's cosine with the clip up to 1 the video's has gone.

    All are features `D`; NaN where one of them is None.
    """
    if video is None or base is None or clip is None:
        return torch.tensor(torch.nan)
    near, far = F.cosine_similarity(video, clip, dim=0), F.cosine_similarity(base, clip, dim=0)
    return (near - far) / (1 - far).clamp_min(LEAST_ROOM)
