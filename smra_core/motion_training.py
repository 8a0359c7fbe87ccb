"""From a reference clip to a motion LoRA: encode once, measure its optical flow once, train, save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .encoders.sea_raft import SeaRaft, load_sea_raft
from .mora import MotionObjective, MotionSample, MotionSettings
from .motion_clip import MotionClip
from .on_demand import on_demand
from .tensor_cache import content_hash
from .trainer import StepInfo, TrainSettings
from .training_job import TrainedLora, TrainingJob, run_job

if TYPE_CHECKING:  # it needs diffusers, which ComfyUI does without
    from .workplace import Workplace


def train_motion(
    workplace: Workplace,
    clip: MotionClip,
    sea_raft: Path | None,
    settings: MotionSettings,
    train: TrainSettings,
    name: str = "motion",
    on_step: Callable[[StepInfo], None] | None = None,
) -> TrainedLora:
    """Train, resume or extend the motion LoRA of this clip; a finished run is returned at once.

    `sea_raft` is the file of the flow net's weights; it may be None when mora_weight is 0 (ValueError
    otherwise), and is not read then.
    """
    flow_file = _needed(sea_raft, settings)
    sample = prepare_motion(workplace, clip, flow_file)
    job = TrainingJob(
        "motion", name, settings, train, [sample], [clip.caption],
        make_objective=lambda: load_objective(workplace, flow_file, settings),
        teachers=_identity(workplace, flow_file),
    )  # fmt: skip
    return run_job(workplace, job, on_step)


def _needed(sea_raft: Path | None, settings: MotionSettings) -> Path | None:
    """The flow net's file if it takes part in training."""
    if not settings.mora_weight:
        return None
    if sea_raft is None:
        raise ValueError(
            f"MoRA at weight {settings.mora_weight} needs SEA-RAFT's weights. Give their file, or set "
            "mora_weight to 0 to train on the temporal loss alone."
        )
    return sea_raft


def _identity(workplace: Workplace, sea_raft: Path | None) -> tuple[str, ...]:
    """Of the nets that training goes through."""
    if sea_raft is None:
        return ()
    return (workplace.vae_identity(), content_hash(sea_raft))


def prepare_motion(workplace: Workplace, clip: MotionClip, sea_raft: Path | None) -> MotionSample:
    """All that training needs of the clip, each encoder loaded at most once and freed before the next.

    Without a flow net the reference flow is empty.
    """
    context = workplace.contexts([clip.caption])[clip.caption]
    (latents,) = workplace.latents([clip.frames])
    flow = torch.zeros(len(clip.frames) - 1, 2, 0, 0)
    if sea_raft is not None:
        flow = reference_flow(workplace, clip.frames, sea_raft)
    return MotionSample(clip.name, latents, context, flow)


def reference_flow(workplace: Workplace, frames: Tensor, sea_raft: Path) -> Tensor:
    """Optical flow `F-1 2 H W` in pixels between adjacent frames `F 3 H W` in [0, 1]."""
    with on_demand(lambda: _flow_net(workplace, sea_raft)) as flow_net:

        @torch.no_grad()
        def compute() -> dict[str, Tensor]:
            return {"flow": flow_net().pair_flows(frames.to(workplace.device) * 255).cpu()}

        key = {"sea_raft": content_hash(sea_raft), "frames": content_hash(frames)}
        return workplace.cache.get_or_compute("flow", key, compute)["flow"]


def load_objective(workplace: Workplace, sea_raft: Path | None, settings: MotionSettings) -> MotionObjective:
    """The objective with the nets that take part in training."""
    if sea_raft is None:
        return MotionObjective(settings, None, None)
    return MotionObjective(settings, workplace.frozen_decoder(), _flow_net(workplace, sea_raft).pair_flows)


def _flow_net(workplace: Workplace, sea_raft: Path) -> SeaRaft:
    return load_sea_raft(sea_raft).to(workplace.device)
