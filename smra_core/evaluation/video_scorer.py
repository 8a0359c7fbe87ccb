"""What the demo measures of its videos, with the miniature's own teachers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.subject_set import SubjectImage
from ..encoders.dinov2 import load_dinov2
from ..encoders.sea_raft import load_sea_raft
from .metrics import METRIC_HELP as ALL_EXPLAINED
from .metrics import (
    Tracks,
    chain_tracks,
    mean_pairwise_cosine,
    mean_patch,
    motion_amount,
    motion_fidelity,
    motion_fidelity_axes,
    temporal_consistency,
)

GRID = 16
"""Points a side that are followed through a clip."""
_SHOWN = (
    "DINO-I",
    "Motion Fidelity (flow)",
    "Motion Fidelity x (flow)",
    "Motion Fidelity y (flow)",
    "Motion Amount",
    "Temporal Consistency",
)
METRIC_HELP = {name: ALL_EXPLAINED[name] for name in _SHOWN}


class VideoScorer:
    """Knows the references, and scores videos against them."""

    def __init__(self, dinov2: Path, sea_raft: Path):
        self.dinov2, self.sea_raft = load_dinov2(dinov2), load_sea_raft(sea_raft)

    def learn(self, images: Sequence[SubjectImage], clip: Tensor) -> None:
        """Take the subject's pictures and the motion's clip `F 3 H W` in [0, 1] as references."""
        self.subject = self._embeddings(torch.stack([image.pixels for image in images]))
        self.motion = self.flow(clip)
        self.tracks = self._tracks(clip, self.motion)

    @torch.no_grad()
    def flow(self, clip: Tensor) -> Tensor:
        """Optical flow `F-1 2 H W` in pixels of a clip `F 3 H W` in [0, 1]."""
        return self.sea_raft.pair_flows(clip * 255)

    def metrics(self, videos: Tensor) -> dict[str, float]:
        """Mean of every figure over videos `B F 3 H W` in [0, 1]; names as in METRIC_HELP."""
        each = [self._figures_of(video) for video in videos]
        return {name: sum(metrics[name] for metrics in each) / len(each) for name in _SHOWN}

    def _figures_of(self, video: Tensor) -> dict[str, float]:
        embeddings, flow = self._embeddings(video), self.flow(video)
        tracks = self._tracks(video, flow)
        axes = motion_fidelity_axes(*tracks, *self.tracks)
        return {
            "DINO-I": mean_pairwise_cosine(embeddings, self.subject),
            "Motion Fidelity (flow)": motion_fidelity(*tracks, *self.tracks),
            "Motion Fidelity x (flow)": axes.x,
            "Motion Fidelity y (flow)": axes.y,
            "Motion Amount": motion_amount(flow, self.motion),
            "Temporal Consistency": temporal_consistency(embeddings),
        }

    @torch.no_grad()
    def _embeddings(self, frames: Tensor) -> Tensor:
        return mean_patch(self.dinov2.patch_features(frames))

    def _tracks(self, clip: Tensor, flow: Tensor) -> Tracks:
        return chain_tracks(flow, GRID, self.flow(clip.flip(0)).flip(0))
