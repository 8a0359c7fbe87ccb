"""From a reference clip to a motion LoRA: encode once, measure its optical flow once, train, save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.motion_clip import MotionClip
from ..decoding.tiny_decoder import TinyDecoder, load_tiny_decoder, with_matching_scaling
from ..decoding.windows import warm_stretches
from ..encoders.sea_raft import SeaRaft, load_sea_raft
from ..storage.on_demand import on_demand
from ..storage.tensor_cache import content_hash
from .decode_choice import DecodeChoice, choose_decode
from .job import TrainedLora, TrainingJob, run_job
from .mora import MotionObjective, MotionSample, MotionSettings
from .trainer import StepInfo, TrainSettings

if TYPE_CHECKING:  # it needs diffusers, which ComfyUI does without
    from ..standalone.backend import Workplace


def train_motion(
    workplace: Workplace,
    clip: MotionClip,
    sea_raft: Path | None,
    settings: MotionSettings,
    train: TrainSettings,
    name: str = "motion",
    on_step: Callable[[StepInfo], None] | None = None,
    tiny_decoder: Path | None = None,
    choice: DecodeChoice | None = None,
) -> TrainedLora:
    """Train, resume or extend the motion LoRA of this clip; a finished run is returned at once.

    `sea_raft` is the file of the flow net's weights; it may be None when mora_weight is 0 (ValueError
    otherwise), and is not read then. `tiny_decoder` is needed when decode is `tiny`, and lets `auto` choose
    it. `choice` tells how to decode where that was settled before.
    """
    flow_file = _needed(sea_raft, settings)
    if flow_file is None:
        choice = DecodeChoice("exact", False, 0.0)  # nothing is decoded
    else:
        has_tiny = tiny_decoder is not None
        choice = choice or choose_decode(settings, workplace.spec(), workplace.device, has_tiny)
        settings = replace(settings, decode=choice.decode)  # the run is the run of what was chosen
    tiny_file = tiny_decoder if choice.decode == "tiny" else None
    sample = prepare_motion(workplace, clip, flow_file, tiny_file)
    job = TrainingJob(
        "motion", name, settings, train, [sample], [clip.caption],
        make_objective=lambda: load_objective(
            workplace, flow_file, settings, [sample], choice.recompute, tiny_file
        ),
        teachers=_identity(workplace, flow_file, tiny_file),
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


def _identity(workplace: Workplace, sea_raft: Path | None, tiny: Path | None) -> tuple[str, ...]:
    """Of the nets that training goes through."""
    if sea_raft is None:
        return ()
    files = (sea_raft,) if tiny is None else (sea_raft, tiny)
    return (workplace.vae_identity(), *map(content_hash, files))


def prepare_motion(
    workplace: Workplace, clip: MotionClip, sea_raft: Path | None, tiny: Path | None = None
) -> MotionSample:
    """All that training needs of the clip, each encoder loaded at most once and freed before the next.

    Without a flow net the reference flow is empty. With a tiny decoder it is that of the clip as this decoder
    shows it, so that what it gets wrong is on both sides of the comparison.
    """
    context = workplace.contexts([clip.caption])[clip.caption]
    (latents,) = workplace.latents([clip.frames])
    if sea_raft is None:
        return MotionSample(clip.name, latents, context, torch.zeros(len(clip.frames) - 1, 2, 0, 0))
    frames = clip.frames if tiny is None else _as_shown(workplace, latents, tiny)
    return MotionSample(clip.name, latents, context, reference_flow(workplace, frames, sea_raft))


@torch.no_grad()
def _as_shown(workplace: Workplace, latents: Tensor, tiny: Path) -> Tensor:
    """Frames `F 3 H W` in [0, 1], not clamped, that a tiny decoder makes of latents."""

    def compute() -> dict[str, Tensor]:
        moved = latents.to(workplace.device)
        pixels, _ = _tiny_decoder(workplace, tiny, moved).step(moved[None])
        return {"frames": ((pixels[0].float() + 1) / 2).transpose(0, 1).cpu().contiguous()}

    key = {"tiny decoder": content_hash(tiny), "latents": content_hash(latents)}
    return workplace.cache.get_or_compute("shown", key, compute)["frames"]


def _tiny_decoder(workplace: Workplace, tiny: Path, latents: Tensor) -> TinyDecoder:
    """In the VAE's precision, its scaling found on the clip's latents."""
    with on_demand(workplace.frozen_decoder) as full:
        decoder = load_tiny_decoder(tiny).to(workplace.device, full().dtype)
        return with_matching_scaling(decoder, full(), latents)


def reference_flow(workplace: Workplace, frames: Tensor, sea_raft: Path) -> Tensor:
    """Optical flow `F-1 2 H W` in pixels between adjacent frames `F 3 H W` in [0, 1]."""
    with on_demand(lambda: _flow_net(workplace, sea_raft)) as flow_net:

        @torch.no_grad()
        def compute() -> dict[str, Tensor]:
            return {"flow": flow_net().pair_flows(frames.to(workplace.device) * 255).cpu()}

        key = {"sea_raft": content_hash(sea_raft), "frames": content_hash(frames)}
        return workplace.cache.get_or_compute("flow", key, compute)["flow"]


def load_objective(
    workplace: Workplace,
    sea_raft: Path | None,
    settings: MotionSettings,
    samples: Sequence[MotionSample],
    recompute: bool = False,
    tiny: Path | None = None,
) -> MotionObjective:
    """The objective with the nets that take part in training, and the states from which windows start."""
    if sea_raft is None:
        return MotionObjective(settings, None, None)
    flow_net = _flow_net(workplace, sea_raft).pair_flows
    if tiny is not None:
        decoder = _tiny_decoder(workplace, tiny, samples[0].latents.to(workplace.device))
        return MotionObjective(settings, decoder, flow_net)
    decoder = workplace.frozen_decoder(recompute)
    if settings.decode != "windowed":
        return MotionObjective(settings, decoder, flow_net)
    stretches = {
        sample.name: warm_stretches(
            sample.latents.to(workplace.device), decoder, settings.window, settings.context
        )
        for sample in samples
    }
    return MotionObjective(settings, decoder, flow_net, stretches)


def _flow_net(workplace: Workplace, sea_raft: Path) -> SeaRaft:
    return load_sea_raft(sea_raft).to(workplace.device)
