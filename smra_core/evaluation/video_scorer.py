"""Metrics of generated videos, computed with DINOv2 and SEA-RAFT from weight files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.subject_set import SubjectImage
from ..encoders.dinov2 import load_dinov2
from ..encoders.sea_raft import load_sea_raft
from .metrics import (
    METRIC_HELP,
    Tracks,
    average_pairwise_cosine,
    average_patches,
    chain_tracks,
    measure_motion_amount,
    measure_motion_fidelity,
    measure_motion_fidelity_axes,
    measure_temporal_consistency,
)

GRID = 16
"""Number of points per side of the grid that is followed through a clip."""


class VideoScorer:
    """Scorer of videos against reference pictures and a reference clip."""

    def __init__(self, dinov2: Path, sea_raft: Path):
        self.dinov2, self.sea_raft = load_dinov2(dinov2), load_sea_raft(sea_raft)

    def set_references(self, images: Sequence[SubjectImage], clip: Tensor) -> None:
        """Take the subject's pictures and the motion's clip `F 3 H W` in [0, 1] as the references."""
        self.subject = self._embed(torch.stack([image.pixels for image in images]))
        self.motion = self.flow(clip)
        self.tracks = self._track_points(clip, self.motion)

    @torch.no_grad()
    def flow(self, clip: Tensor) -> Tensor:
        """Return the optical flow `F-1 2 H W` in pixels of a clip `F 3 H W` in [0, 1]."""
        return self.sea_raft.compute_pair_flows(clip * 255)

    def score(self, videos: Tensor) -> dict[str, float]:
        """Return the mean over videos `B F 3 H W` in [0, 1] of every metric of METRIC_HELP, by its name."""
        scores = [self._score_video(video) for video in videos]
        return {name: sum(score[name] for score in scores) / len(scores) for name in METRIC_HELP}

    def _score_video(self, video: Tensor) -> dict[str, float]:
        embeddings, flow = self._embed(video), self.flow(video)
        tracks = self._track_points(video, flow)
        axes = measure_motion_fidelity_axes(*tracks, *self.tracks)
        return {
            "DINO-I (DINOv2)": average_pairwise_cosine(embeddings, self.subject),
            "Motion Fidelity (flow)": measure_motion_fidelity(*tracks, *self.tracks),
            "Motion Fidelity x (flow)": axes.x,
            "Motion Fidelity y (flow)": axes.y,
            "Motion Amount": measure_motion_amount(flow, self.motion),
            "Temporal Consistency": measure_temporal_consistency(embeddings),
        }

    @torch.no_grad()
    def _embed(self, frames: Tensor) -> Tensor:
        return average_patches(self.dinov2.extract_patch_features(frames))

    def _track_points(self, clip: Tensor, flow: Tensor) -> Tracks:
        return chain_tracks(flow, GRID, self.flow(clip.flip(0)).flip(0))
