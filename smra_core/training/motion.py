"""Train a motion LoRA from reference clips: encode each once, compute its optical flow once, train, save."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, compress
from pathlib import Path

import torch
from torch import Tensor

from ..data.color_copies import add_color_copies, describe_copies
from ..data.motion_clip import MotionClip
from ..decoding.tiny_decoder import TinyDecoder, load_tiny_decoder, with_matching_scaling
from ..encoders.sea_raft import SeaRaft, load_sea_raft
from ..lora.expert_pair import mark_expert
from ..storage.content_hash import hash_content
from ..storage.on_demand import loaded_on_first_use
from .backend import Backend
from .clip_windows import ClipWindows
from .decode_choice import choose_decode, choose_memory_advice
from .decode_memory import DecodeChoice
from .held_out import leave_one_out
from .job import TrainedLora, TrainingJob, check_precision, run_job
from .mask_grid import pool_to_latents, pool_to_pairs
from .model_fit import check_fit, fit_noise_range
from .mora import MotionObjective, MotionSample
from .motion_settings import MotionSettings
from .optimizer import check_optimizer
from .step_info import StepInfo
from .train_settings import TrainSettings

log = logging.getLogger("smrabooth")


def train_motion(
    backend: Backend,
    clips: Sequence[MotionClip],
    sea_raft: Path | None,
    settings: MotionSettings,
    train: TrainSettings,
    name: str = "motion",
    on_step: Callable[[StepInfo], None] | None = None,
    tiny_decoder: Path | None = None,
    choice: DecodeChoice | None = None,
) -> TrainedLora:
    """Train, resume or extend the motion LoRA of these clips; a finished run is returned at once.

    `sea_raft` is the file of the flow net's weights. It may be None if mora_weight is 0 (ValueError
    otherwise), and is not read then. `tiny_decoder` is a file that is needed if decode is `tiny`, and that
    lets `auto` choose it. `choice` says how to decode if that was chosen before. A noise range of one expert
    is added to the name.
    """
    check_precision(backend)
    check_optimizer(train.optimizer)
    flow_file = _check_flow_file(sea_raft, settings)
    check_fit(settings, backend.spec)
    settings = fit_noise_range(settings, backend.spec)
    name = mark_expert(name, settings.noise_range.expert)
    choice = choice or choose_decode(
        settings, backend.spec, backend.device, tiny_decoder, weights=backend.weights
    )
    choice = backend.ranks.share(choice)  # because the GPUs may have different memory to spare
    # The run's folder is named after the mode that was chosen, so that `auto` resumes the same run.
    settings = replace(settings, decode=choice.decode)
    clips = _add_copies(clips, settings, train)
    with backend.ranks.let_first_prepare():
        prepared = prepare_motion(backend, clips, flow_file, choice.tiny_file)
    samples, held_out = leave_one_out(prepared, train.held_out_every)
    clips, _ = leave_one_out(clips, train.held_out_every)
    job = TrainingJob(
        "motion", name, settings, train, samples, [clip.caption for clip in clips],
        load_objective=lambda: load_objective(backend, flow_file, settings, prepared, choice),
        encoders=_hash_encoders(backend, flow_file, choice.tiny_file), held_out=held_out,
        decode_bytes=choice.bytes,
    )  # fmt: skip
    return run_job(backend, job, on_step)


def _add_copies(
    clips: Sequence[MotionClip], settings: MotionSettings, train: TrainSettings
) -> Sequence[MotionClip]:
    """Add the copies in other colors of all clips but the one that is held out, which stays the last.

    Raises ValueError when one is to be held out and there is no other.
    """
    learned, held_out = leave_one_out(clips, train.held_out_every)
    if not settings.color_copies:
        return clips
    log.info("Training on %s.", describe_copies(len(learned), settings.color_copies * len(learned)))
    return [*add_color_copies(learned, settings.color_copies, train.seed), *held_out]


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
    backend: Backend, clips: Sequence[MotionClip], sea_raft: Path | None, tiny_file: Path | None = None
) -> list[MotionSample]:
    """Encode all that training needs of the clips; each encoder is loaded at most once and freed before the
    next.

    Without a flow net the reference flows are empty. With a tiny decoder they are those of the clips as this
    decoder renders them, so that the decoder's errors are on both sides of the comparison. ValueError if a
    mask excludes all of its clip. A copy in other colors has the flow of the clip before it.
    """
    _check_masks(clips)
    conditions = backend.make_conditions([clip.frames for clip in clips])  # early, as it may refuse
    contexts = backend.encode_captions([clip.caption for clip in clips])
    latents = backend.encode_clips([clip.frames for clip in clips])
    flows = [torch.zeros(len(clip.frames) - 1, 2, 0, 0) for clip in clips]
    if sea_raft is not None:
        are_measured = [not clip.is_color_copy for clip in clips]
        frames = [clip.frames for clip in compress(clips, are_measured)]
        if tiny_file is not None:
            frames = _render_tiny(backend, list(compress(latents, are_measured)), tiny_file)
        measured = compute_reference_flows(backend, frames, sea_raft)
        flows = [measured[number - 1] for number in accumulate(are_measured)]
    return [
        _add_mask(
            MotionSample(clip.name, z, contexts[clip.caption], flow, condition.inputs, condition.given), clip
        )
        for clip, z, flow, condition in zip(clips, latents, flows, conditions, strict=True)
    ]


def _check_masks(clips: Sequence[MotionClip]) -> None:
    """Raise ValueError if a mask excludes all of its clip; before anything is encoded."""
    for clip in clips:
        if clip.exclude_px is not None and clip.exclude_px.all():
            raise ValueError(
                f"The mask of {clip.name} excludes all of the clip, and nothing is left to learn. White is "
                "left out: invert the mask, or train without it."
            )


def _add_mask(sample: MotionSample, clip: MotionClip) -> MotionSample:
    """Add the clip's mask on the grids of latents and flow; ValueError if it leaves nothing."""
    if clip.exclude_px is None:
        return sample
    mask_latent = 1 - pool_to_latents(clip.exclude_px, sample.latents.shape[-2:])
    flow = sample.reference_flow
    counted = 1 - pool_to_pairs(clip.exclude_px, flow.shape[-2:]) if flow.numel() else None
    if not mask_latent.any() or (counted is not None and not counted.any()):
        raise ValueError(
            f"The mask of {clip.name} leaves nothing to learn: it touches every cell of the clip's latents, "
            "each of which covers 4 frames. White is left out. Invert the mask, or make it smaller."
        )
    # The mean is that of the whole clip, so that windows of it estimate the clip's loss without bias.
    return sample._replace(
        mask_latent=mask_latent, flow_weight_px=None if counted is None else counted / counted.mean()
    )


@torch.no_grad()
def _render_tiny(backend: Backend, latents: Sequence[Tensor], tiny_file: Path) -> list[Tensor]:
    """Decode latents `C f h w` of each clip with a tiny decoder to frames `F 3 H W`, nominally in [0, 1], not
    clamped.
    """
    key = {"tiny decoder": hash_content(tiny_file)}
    with loaded_on_first_use(
        lambda: _load_tiny(backend, tiny_file, latents[0].to(backend.device))
    ) as decoder:

        def render(clip: Tensor) -> Tensor:
            def compute() -> dict[str, Tensor]:
                pixels, _ = decoder().step(clip.to(backend.device)[None])
                return {"frames": ((pixels[0].float() + 1) / 2).transpose(0, 1).cpu().contiguous()}

            # The decoder's scaling is found on the first clip.
            scaling = {} if clip is latents[0] else {"scaling": hash_content(latents[0])}
            parts = {**key, "latents": hash_content(clip), **scaling}
            return backend.cache.get_or_compute("shown", parts, compute)["frames"]

        return [render(clip) for clip in latents]


def _load_tiny(backend: Backend, tiny_file: Path, latents: Tensor) -> TinyDecoder:
    """Load the tiny decoder in the VAE's precision; its scaling is found on the clip's latents."""
    with loaded_on_first_use(backend.load_decoder) as full:
        decoder = load_tiny_decoder(tiny_file, backend.spec.latents).to(backend.device, full().dtype)
        return with_matching_scaling(decoder, full(), latents)


def compute_reference_flows(backend: Backend, clips: Sequence[Tensor], sea_raft: Path) -> list[Tensor]:
    """Return the optical flow `F-1 2 H W` in pixels between adjacent frames of each clip `F 3 H W` in
    [0, 1].
    """
    weights = hash_content(sea_raft)
    with loaded_on_first_use(lambda: _load_flow_net(backend, sea_raft)) as flow_net:

        @torch.no_grad()
        def measure(frames: Tensor) -> Tensor:
            def compute() -> dict[str, Tensor]:
                return {"flow": flow_net().compute_pair_flows(frames.to(backend.device) * 255).cpu()}

            key = {"sea_raft": weights, "frames": hash_content(frames)}
            return backend.cache.get_or_compute("flow", key, compute)["flow"]

        return [measure(frames) for frames in clips]


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
        windows = ClipWindows(samples, decoder, settings.window, settings.context, backend.device)
    return MotionObjective(settings, decoder, flow_net, windows, advice)


def _load_flow_net(backend: Backend, sea_raft: Path) -> SeaRaft:
    return load_sea_raft(sea_raft).to(backend.device)
