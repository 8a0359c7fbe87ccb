"""From a reference clip to a motion LoRA: encode once, measure its optical flow once, train, save."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.motion_clip import MotionClip
from ..decoding.tiny_decoder import TinyDecoder, load_tiny_decoder, with_matching_scaling
from ..decoding.windows import warm_windows
from ..encoders.sea_raft import SeaRaft, load_sea_raft
from ..storage.content_hash import hash_content
from ..storage.on_demand import loaded_on_first_use
from .backend import Backend
from .decode_choice import DecodeChoice, choose_decode
from .job import TrainedLora, TrainingJob, run_job
from .mora import MotionObjective, MotionSample, MotionSettings
from .trainer import StepInfo, TrainSettings


def train_motion(
    backend: Backend,
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
        choice = choice or choose_decode(settings, backend.spec, backend.device, has_tiny)
        settings = replace(settings, decode=choice.decode)  # the run is the run of what was chosen
    tiny_file = tiny_decoder if choice.decode == "tiny" else None
    sample = prepare_motion(backend, clip, flow_file, tiny_file)
    job = TrainingJob(
        "motion", name, settings, train, [sample], [clip.caption],
        load_objective=lambda: load_objective(
            backend, flow_file, settings, [sample], choice.recompute, tiny_file
        ),
        teachers=_identity(backend, flow_file, tiny_file),
    )  # fmt: skip
    return run_job(backend, job, on_step)


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


def _identity(backend: Backend, sea_raft: Path | None, tiny: Path | None) -> tuple[str, ...]:
    """Of the nets that training goes through."""
    if sea_raft is None:
        return ()
    files = (sea_raft,) if tiny is None else (sea_raft, tiny)
    return (backend.vae_fingerprint, *map(hash_content, files))


def prepare_motion(
    backend: Backend, clip: MotionClip, sea_raft: Path | None, tiny: Path | None = None
) -> MotionSample:
    """All that training needs of the clip, each encoder loaded at most once and freed before the next.

    Without a flow net the reference flow is empty. With a tiny decoder it is that of the clip as this decoder
    shows it, so that what it gets wrong is on both sides of the comparison.
    """
    context = backend.encode_captions([clip.caption])[clip.caption]
    (latents,) = backend.encode_clips([clip.frames])
    if sea_raft is None:
        return MotionSample(clip.name, latents, context, torch.zeros(len(clip.frames) - 1, 2, 0, 0))
    frames = clip.frames if tiny is None else _as_shown(backend, latents, tiny)
    return MotionSample(clip.name, latents, context, reference_flow(backend, frames, sea_raft))


@torch.no_grad()
def _as_shown(backend: Backend, latents: Tensor, tiny: Path) -> Tensor:
    """Frames `F 3 H W` in [0, 1], not clamped, that a tiny decoder makes of latents."""

    def compute() -> dict[str, Tensor]:
        moved = latents.to(backend.device)
        pixels, _ = _tiny_decoder(backend, tiny, moved).step(moved[None])
        return {"frames": ((pixels[0].float() + 1) / 2).transpose(0, 1).cpu().contiguous()}

    key = {"tiny decoder": hash_content(tiny), "latents": hash_content(latents)}
    return backend.cache.get_or_compute("shown", key, compute)["frames"]


def _tiny_decoder(backend: Backend, tiny: Path, latents: Tensor) -> TinyDecoder:
    """In the VAE's precision, its scaling found on the clip's latents."""
    with loaded_on_first_use(backend.load_decoder) as full:
        decoder = load_tiny_decoder(tiny).to(backend.device, full().dtype)
        return with_matching_scaling(decoder, full(), latents)


def reference_flow(backend: Backend, frames: Tensor, sea_raft: Path) -> Tensor:
    """Optical flow `F-1 2 H W` in pixels between adjacent frames `F 3 H W` in [0, 1]."""
    with loaded_on_first_use(lambda: _flow_net(backend, sea_raft)) as flow_net:

        @torch.no_grad()
        def compute() -> dict[str, Tensor]:
            return {"flow": flow_net().compute_pair_flows(frames.to(backend.device) * 255).cpu()}

        key = {"sea_raft": hash_content(sea_raft), "frames": hash_content(frames)}
        return backend.cache.get_or_compute("flow", key, compute)["flow"]


def load_objective(
    backend: Backend,
    sea_raft: Path | None,
    settings: MotionSettings,
    samples: Sequence[MotionSample],
    recompute: bool = False,
    tiny: Path | None = None,
) -> MotionObjective:
    """The objective with the nets that take part in training, and the states from which windows start."""
    if sea_raft is None:
        return MotionObjective(settings, None, None)
    flow_net = _flow_net(backend, sea_raft).compute_pair_flows
    if tiny is not None:
        decoder = _tiny_decoder(backend, tiny, samples[0].latents.to(backend.device))
        return MotionObjective(settings, decoder, flow_net)
    decoder = backend.load_decoder(recompute)
    if settings.decode != "windowed":
        return MotionObjective(settings, decoder, flow_net)
    windows = {
        sample.name: warm_windows(
            sample.latents.to(backend.device), decoder, settings.window, settings.context
        )
        for sample in samples
    }
    return MotionObjective(settings, decoder, flow_net, windows)


def _flow_net(backend: Backend, sea_raft: Path) -> SeaRaft:
    return load_sea_raft(sea_raft).to(backend.device)
