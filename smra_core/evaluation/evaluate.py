"""Evaluation of a video by the paper's metrics, as far as the models that they need are given.

A metric whose model or reference is missing is left out by name, with what would make it possible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..encoders.clip import Clip
from ..encoders.co_tracker import CoTracker
from ..encoders.dino import Dino
from ..encoders.sea_raft import SeaRaft
from .metrics import (
    METRIC_HELP,
    Tracks,
    average_pairwise_cosine,
    chain_tracks,
    measure_motion_amount,
    measure_motion_fidelity,
    measure_motion_fidelity_axes,
    measure_subject_consistency,
    measure_temporal_consistency,
    spread_points,
)
from .picture_encoder import NoTextEmbedding, PictureEncoder, TextPictureEncoder
from .quality import Musiq, measure_aesthetic

GRID = 16
"""Number of points per side of the grid that is followed through a clip."""

EVALUATION_HELP = {
    "CLIP-T": "Cosine of the frames to the prompt, by CLIP.",
    "CLIP-I": "Mean cosine of the frames to the subject's pictures, by CLIP.",
    "DINO-I": "Mean cosine of the frames to the subject's pictures, by the class token of DINO's first "
    "version. The paper's numbers are those of ViT-S/16.",
    **METRIC_HELP,
    "Temporal Consistency": "Mean cosine of each frame to the next, by CLIP. A still picture scores 1, so "
    "read it with the motion.",
    "Subject Consistency": "Mean cosine of each frame to the first and to the one before, by DINO's first "
    "version (VBench takes ViT-B/16). A still picture scores 1.",
    "Subject Consistency (DINOv2)": "The same by DINOv2, which gives other numbers than the paper's.",
    "PickScore": "Which of several videos people would prefer for the prompt, about 20. Compare it for one "
    "prompt only.",
    "Aesthetic": "LAION's aesthetic score, as a share of 10.",
    "Imaging": "Imaging quality by MUSIQ (no blur, noise, overexposure), as a share of 100.",
    "Motion Fidelity": "Do points move in the directions of the reference clip? 100: always; 0: unrelated, "
    "or nothing moves; -100: opposite. The points are CoTracker's, as in the paper.",
    "Motion Fidelity x": "Motion fidelity of the movement to the left and right alone, by CoTracker.",
    "Motion Fidelity y": "Motion fidelity of the movement up and down alone, by CoTracker.",
}
"""Explanation of each metric, by its name."""


@dataclass(frozen=True)
class EvaluationModels:
    """Networks that measure; what is None leaves its metrics out."""

    clip: TextPictureEncoder | None = None
    dino: PictureEncoder | None = None
    sea_raft: SeaRaft | None = None
    pick_score: Clip | None = None
    aesthetic: nn.Linear | None = None
    musiq: Musiq | None = None
    co_tracker: CoTracker | None = None
    """Follows points for motion fidelity; without it they follow SEA-RAFT's flow."""


@dataclass(frozen=True)
class References:
    """What a video is compared with; what is None leaves its metrics out."""

    prompt: str | None = None
    subject: Sequence[Tensor] | None = None
    """Pictures of the subject, each `3 H W` in [0, 1]."""
    motion: Tensor | None = None
    """Clip `F 3 H W` in [0, 1] of the motion, at the video's size."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one video."""

    values: Mapping[str, float]
    """Value by the metric's name, one of EVALUATION_HELP."""
    left_out: Mapping[str, str]
    """Metrics that were not measured, with what they need."""
    notes: Sequence[str]
    """Sentences on which network measured what, and on frames that were left out."""


def evaluate_video(video: Tensor, references: References, models: EvaluationModels) -> Evaluation:
    """Measure a video `F 3 H W` in [0, 1] by every metric whose network and reference are given.

    Raises ValueError for fewer than two frames, or for a motion clip of another size.
    """
    if video.ndim != 4 or len(video) < 2:
        raise ValueError(f"A video of two frames `F 3 H W` at least is needed, got {tuple(video.shape)}.")
    results: dict[str, float | str] = {}
    notes: list[str] = []
    with torch.no_grad():
        results |= _measure_with_clip(video, references, models, notes)
        results |= _measure_with_dino(video, references, models.dino, notes)
        results |= _measure_motion(video, references.motion, models, notes)
        results |= _measure_preference(video, references.prompt, models)
    values = {name: value for name, value in results.items() if not isinstance(value, str)}
    left_out = {name: reason for name, reason in results.items() if isinstance(reason, str)}
    return Evaluation(values, left_out, notes)


def _measure_with_clip(
    video: Tensor, references: References, models: EvaluationModels, notes: list[str]
) -> dict[str, float | str]:
    clip = models.clip
    names = ("CLIP-T", "CLIP-I", "Temporal Consistency", "Aesthetic")
    if clip is None:
        return dict.fromkeys(names, "needs CLIP")
    notes.append(f"CLIP-T, CLIP-I and temporal consistency are measured with {clip.name}")
    frames = clip.embed_pictures(video)
    results: dict[str, float | str] = dict.fromkeys(names, "")
    results["CLIP-T"] = _compare_with_prompt(clip, frames, references.prompt)
    results["CLIP-I"] = _compare_with_subject(clip, frames, references.subject)
    results["Temporal Consistency"] = measure_temporal_consistency(frames)
    results["Aesthetic"] = _measure_aesthetic(models.aesthetic, frames)
    return results


def _compare_with_prompt(clip: TextPictureEncoder, frames: Tensor, prompt: str | None) -> float | str:
    if not prompt:
        return "needs the prompt"
    try:
        text = clip.embed_text(prompt)
    except NoTextEmbedding as error:
        return str(error)
    if text.shape[-1] != frames.shape[-1]:
        return (
            f"needs a text and a vision encoder of one CLIP; these have {text.shape[-1]} and "
            f"{frames.shape[-1]} channels"
        )
    return average_pairwise_cosine(frames, text[None])


def _compare_with_subject(
    encoder: PictureEncoder, frames: Tensor, subject: Sequence[Tensor] | None
) -> float | str:
    if not subject:
        return "needs pictures of the subject"
    pictures = torch.cat([encoder.embed_pictures(picture[None]) for picture in subject])
    return average_pairwise_cosine(frames, pictures)


def _measure_aesthetic(layer: nn.Linear | None, frames: Tensor) -> float | str:
    if layer is None:
        return "needs LAION's aesthetic layer"
    if layer.in_features != frames.shape[-1]:
        return (
            f"needs CLIP ViT-L/14, whose embeddings have {layer.in_features} channels; these have "
            f"{frames.shape[-1]}"
        )
    return measure_aesthetic(layer, frames)


def _measure_with_dino(
    video: Tensor, references: References, dino: PictureEncoder | None, notes: list[str]
) -> dict[str, float | str]:
    kind = "" if dino is None or isinstance(dino, Dino) else " (DINOv2)"
    names = f"DINO-I{kind}", f"Subject Consistency{kind}"
    if dino is None:
        return dict.fromkeys(names, "needs DINO or DINOv2")
    notes.append(f"DINO-I and subject consistency are measured with {dino.name}")
    frames = dino.embed_pictures(video)
    similarity = _compare_with_subject(dino, frames, references.subject)
    return {names[0]: similarity, names[1]: measure_subject_consistency(frames)}


def _measure_motion(
    video: Tensor, motion: Tensor | None, models: EvaluationModels, notes: list[str]
) -> dict[str, float | str]:
    """Return motion fidelity, named after what followed the points, and motion amount."""
    tracker, sea_raft = models.co_tracker, models.sea_raft
    kind = " (flow)" if tracker is None else ""
    fidelity = [f"Motion Fidelity{axis}{kind}" for axis in ("", " x", " y")]
    results: dict[str, float | str] = dict.fromkeys([*fidelity, "Motion Amount"], "needs SEA-RAFT")
    if motion is None:
        known = (fidelity if tracker else []) if sea_raft is None else results
        return results | dict.fromkeys(known, "needs the clip of the motion")
    clips = _fit_lengths(video, motion, notes)
    tracks = []
    if sea_raft is not None:
        flows = [measure_flow(sea_raft, clip) for clip in clips]
        results["Motion Amount"] = measure_motion_amount(*flows)
        tracks = [_follow_flow(sea_raft, *part) for part in zip(clips, flows, strict=True) if not tracker]
    if tracker is not None:
        notes.append(f"motion fidelity is measured with the points of {tracker.name}")
        grid = spread_points(GRID, *video.shape[-2:])
        tracks = [Tracks(*tracker.follow(clip, grid)) for clip in clips]
    return results | (_compare_tracks(fidelity, *tracks) if tracks else {})


def _follow_flow(sea_raft: SeaRaft, clip: Tensor, flow: Tensor) -> Tracks:
    """Return points that are followed along the flow of a clip; its flow backward tells which are lost."""
    return chain_tracks(flow, GRID, measure_flow(sea_raft, clip.flip(0)).flip(0))


def _compare_tracks(names: Sequence[str], video: Tracks, motion: Tracks) -> dict[str, float]:
    """Return motion fidelity and that of each axis, under these names."""
    both = (*video, *motion)
    values = measure_motion_fidelity(*both), *measure_motion_fidelity_axes(*both)
    return dict(zip(names, values, strict=True))


def _fit_lengths(video: Tensor, motion: Tensor, notes: list[str]) -> tuple[Tensor, Tensor]:
    """Return the frames of both that are compared; ValueError for different sizes."""
    if motion.shape[-2:] != video.shape[-2:]:
        raise ValueError(
            f"The clip of the motion has {tuple(motion.shape[-2:])} pixels (height, width) and the video "
            f"{tuple(video.shape[-2:])}. Resize the clip to the video's size."
        )
    length = min(len(video), len(motion))
    if len(video) != len(motion):
        notes.append(f"motion is compared over the first {length} of {len(video)} and {len(motion)} frames")
    return video[:length], motion[:length]


@torch.no_grad()
def measure_flow(sea_raft: SeaRaft, clip: Tensor) -> Tensor:
    """Return the optical flow `F-1 2 H W` in pixels, on the CPU, of a clip `F 3 H W` in [0, 1]."""
    device = next(sea_raft.parameters()).device
    return sea_raft.compute_pair_flows(clip.to(device) * 255).cpu()


def _measure_preference(
    video: Tensor, prompt: str | None, models: EvaluationModels
) -> dict[str, float | str]:
    pick, musiq = models.pick_score, models.musiq
    results: dict[str, float | str] = {"PickScore": "needs PickScore", "Imaging": "needs MUSIQ"}
    if pick is not None:
        results["PickScore"] = "needs the prompt"
        if prompt:
            text = pick.embed_text(prompt)[None]
            results["PickScore"] = pick.logit_scale * average_pairwise_cosine(
                pick.embed_pictures(video), text
            )
    if musiq is not None:
        results["Imaging"] = musiq.measure_imaging(video)
    return results
