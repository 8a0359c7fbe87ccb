"""Train a motion LoRA from a reference clip: encode it once, compute its optical flow once, train, save."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.motion_clip import MotionClip
from ..decoding.tiny_decoder import TinyDecoder, load_tiny_decoder, with_matching_scaling
from ..decoding.windows import warm_windows
from ..encoders.sea_raft import SeaRaft, load_sea_raft
from ..lora.expert_pair import mark_expert
from ..storage.content_hash import hash_content
from ..storage.on_demand import loaded_on_first_use
from .backend import Backend
from .decode_choice import DecodeChoice, choose_decode, choose_memory_advice
from .job import TrainedLora, TrainingJob, check_precision, run_job
from .model_fit import check_fit, fit_noise_range
from .mora import MotionObjective, MotionSample, MotionSettings
from .trainer import StepInfo, TrainSettings

log = logging.getLogger("smrabooth")


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

    `sea_raft` is the file of the flow net's weights. It may be None if mora_weight is 0 (ValueError
    otherwise), and is not read then. `tiny_decoder` is a file that is needed if decode is `tiny`, and that
    lets `auto` choose it. `choice` says how to decode if that was chosen before. A noise range of one expert
    is added to the name.
    """
    check_precision(backend)
    flow_file = _check_flow_file(sea_raft, settings)
    check_fit(settings, backend.spec)
    settings = fit_noise_range(settings, backend.spec)
    name = mark_expert(name, settings.noise_range.expert)
    choice = choice or choose_decode(settings, backend.spec, backend.device, tiny_decoder)
    # The run's folder is named after the mode that was chosen, so that `auto` resumes the same run.
    settings = replace(settings, decode=choice.decode)
    sample = prepare_motion(backend, clip, flow_file, choice.tiny_file)
    job = TrainingJob(
        "motion", name, settings, train, [sample], [clip.caption],
        load_objective=lambda: load_objective(backend, flow_file, settings, [sample], choice),
        encoders=_hash_encoders(backend, flow_file, choice.tiny_file),
    )  # fmt: skip
    return run_job(backend, job, on_step)


def _check_flow_file(sea_raft: Path | None, settings: MotionSettings) -> Path | None:
    """Return the flow net's file, or None if it takes no part in training; ValueError if it is missing."""
    if not settings.mora_weight:
        return None
    if sea_raft is None:
        raise ValueError(
            f"MoRA at mora_weight {settings.mora_weight} needs SEA-RAFT's weights. Give their file, or set "
            "mora_weight to 0 to train on the temporal loss alone."
        )
    return sea_raft


def _hash_encoders(backend: Backend, sea_raft: Path | None, tiny_file: Path | None) -> tuple[str, ...]:
    """Return content hashes of the frozen nets through which the motion loss goes."""
    if sea_raft is None:
        return ()
    files = (sea_raft,) if tiny_file is None else (sea_raft, tiny_file)
    return (backend.vae_fingerprint, *map(hash_content, files))


def prepare_motion(
    backend: Backend, clip: MotionClip, sea_raft: Path | None, tiny_file: Path | None = None
) -> MotionSample:
    """Encode all that training needs of the clip; each encoder is loaded at most once and freed before the
    next.

    Without a flow net the reference flow is empty. With a tiny decoder it is the flow of the clip as this
    decoder renders it, so that the decoder's errors are on both sides of the comparison.
    """
    (condition,) = backend.make_conditions([clip.frames])  # first, because one that does not fit is refused
    context = backend.encode_captions([clip.caption])[clip.caption]
    (latents,) = backend.encode_clips([clip.frames])
    flow = torch.zeros(len(clip.frames) - 1, 2, 0, 0)
    if sea_raft is not None:
        frames = clip.frames if tiny_file is None else _render_tiny(backend, latents, tiny_file)
        flow = compute_reference_flow(backend, frames, sea_raft)
    return MotionSample(clip.name, latents, context, flow, condition.inputs, condition.given)


@torch.no_grad()
def _render_tiny(backend: Backend, latents: Tensor, tiny_file: Path) -> Tensor:
    """Decode latents `16 f h w` with a tiny decoder to frames `F 3 H W`, nominally in [0, 1], not clamped."""

    def compute() -> dict[str, Tensor]:
        on_device = latents.to(backend.device)
        pixels, _ = _load_tiny(backend, tiny_file, on_device).step(on_device[None])
        return {"frames": ((pixels[0].float() + 1) / 2).transpose(0, 1).cpu().contiguous()}

    key = {"tiny decoder": hash_content(tiny_file), "latents": hash_content(latents)}
    return backend.cache.get_or_compute("shown", key, compute)["frames"]


def _load_tiny(backend: Backend, tiny_file: Path, latents: Tensor) -> TinyDecoder:
    """Load the tiny decoder in the VAE's precision; its scaling is found on the clip's latents."""
    with loaded_on_first_use(backend.load_decoder) as full:
        decoder = load_tiny_decoder(tiny_file, backend.spec.latents).to(backend.device, full().dtype)
        return with_matching_scaling(decoder, full(), latents)


def compute_reference_flow(backend: Backend, frames: Tensor, sea_raft: Path) -> Tensor:
    """Return the optical flow `F-1 2 H W` in pixels between adjacent frames `F 3 H W` in [0, 1]."""
    with loaded_on_first_use(lambda: _load_flow_net(backend, sea_raft)) as flow_net:

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
    choice: DecodeChoice | None = None,
) -> MotionObjective:
    """Load the objective: the nets that take part in training, and the decoder states at which windows start.

    Without a `choice`, WAN's decoder is loaded for the mode in the settings, and nothing is recomputed.
    """
    advice = choose_memory_advice(settings)
    if sea_raft is None:
        return MotionObjective(settings, None, None, memory_advice=advice)
    net = _load_flow_net(backend, sea_raft)
    # It is loaded for the reference flow, too, but told only once.
    log.info("SEA-RAFT: %s from %s", net.config.name, sea_raft.name)
    flow_net = net.compute_pair_flows
    if choice is not None and choice.tiny_file is not None:
        decoder = _load_tiny(backend, choice.tiny_file, samples[0].latents.to(backend.device))
        return MotionObjective(settings, decoder, flow_net, memory_advice=advice)
    decoder = backend.load_decoder(choice is not None and choice.recompute)
    windows = None
    if settings.decode == "windowed":
        windows = {
            sample.name: warm_windows(
                sample.latents.to(backend.device), decoder, settings.window, settings.context
            )
            for sample in samples
        }
    return MotionObjective(settings, decoder, flow_net, windows, advice)


def _load_flow_net(backend: Backend, sea_raft: Path) -> SeaRaft:
    return load_sea_raft(sea_raft).to(backend.device)
