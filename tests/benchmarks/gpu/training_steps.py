"""Rows of training steps, run by the training loop itself: forward, backward, clipping, AdamW."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from smra_core.decoding.windows import warm_windows
from smra_core.lora.adapter import init_lora
from smra_core.training.mora import MotionObjective
from smra_core.training.sura import SubjectObjective
from smra_core.training.train_settings import TrainSettings
from smra_core.training.trainer import train_lora
from tests.benchmarks.gpu.meter import Row, measured
from tests.benchmarks.gpu.models import (
    make_decoder,
    make_denoiser,
    make_flow_net,
    make_motion_sample,
    make_subject_sample,
    make_tiny_decoder,
    make_vae,
)
from tests.benchmarks.gpu.released_way import ReleasedMotionObjective
from tests.benchmarks.gpu.sizes import Sizes
from tests.benchmarks.gpu.told import tell_motion, tell_subject

Case = tuple[Row, Callable[[Row], None]]
"""A row, and the work that fills it."""
DECODES = (
    ("windowed", False),
    ("windowed", True),
    ("tiny", False),
    ("exact", False),
    ("exact", True),
    ("exact-low-memory", False),
)


def train_measured(
    row: Row, denoiser, objective, samples, settings, steps: int, batch_size: int = 1, profile=None
) -> None:
    """Train a new LoRA for a few steps of one batch each, and fill the row.

    With `profile`, a torch profiler, its last step is recorded, and is no time to go by.
    """
    device = next(denoiser.dit.parameters()).device
    train = TrainSettings(steps=steps, accumulate=1, batch_size=batch_size)
    with measured(row, device) as meter:
        lora = init_lora(denoiser.spec, settings.plan, settings.rank, torch.Generator().manual_seed(0))
        for pair in lora.values():
            pair.to(device)

        def on_step(info) -> None:
            meter.mark()
            if profile is not None and info.step == steps - 1:
                profile.start()

        train_lora(denoiser, lora, objective, samples, train, on_step=on_step)
    if profile is not None:
        profile.stop()


def make_objective(sizes: Sizes, decode: str, recompute: bool, sample, device) -> MotionObjective:
    """Make the motion objective of one way to decode, as training does it."""
    settings = replace(sizes.motion, decode=decode)
    flow = make_flow_net(sizes, device).compute_pair_flows
    if decode == "tiny":
        return MotionObjective(settings, make_tiny_decoder(sizes, device), flow)
    decoder = make_decoder(sizes, device, recompute)
    windows = None
    if decode == "windowed":
        latents = sample.latents.to(device)
        windows = {sample.name: warm_windows(latents, decoder, settings.window, settings.context)}
    return MotionObjective(settings, decoder, flow, windows)


def list_large_cases(sizes: Sizes, device: torch.device, steps: int) -> Iterator[Case]:
    """Yield the motion steps that a consumer card may hold, on the large model."""
    part = f"motion step, {sizes.large.name}"
    wanted = ("plain LoRA step", "windowed", "windowed, recomputing", "tiny")
    for row, work in _list_motion_cases(sizes, device, sizes.large, steps, part):
        if row.case in wanted:
            yield row, work
    for row, work in _list_subject_cases(
        sizes, device, sizes.large, steps, f"subject step, {sizes.large.name}"
    ):
        if row.case == "with SuRA":
            yield row, work


def list_motion_cases(sizes: Sizes, device: torch.device, steps: int, profile=None) -> Iterator[Case]:
    """Yield all motion steps on the small model."""
    return _list_motion_cases(sizes, device, sizes.spec, steps, f"motion step, {sizes.spec.name}", profile)


def _list_motion_cases(sizes: Sizes, device, spec, steps: int, part: str, profile=None) -> Iterator[Case]:
    """Yield the plain step, each way to decode, and the released code's way, on a DiT of these sizes."""

    def train(row: Row, objective, sample) -> None:
        denoiser = make_denoiser(spec, sizes.dtype, device)
        train_measured(row, denoiser, objective, [sample], sizes.motion, steps, profile=profile)

    def plain(row: Row) -> None:
        settings = replace(sizes.motion, mora_weight=0.0)
        row.told = tell_motion(spec, settings, "windowed", False, sizes)
        train(row, MotionObjective(settings, None, None), make_motion_sample(sizes))

    def decoded(decode: str, recompute: bool) -> Callable[[Row], None]:
        def work(row: Row) -> None:
            row.told = tell_motion(spec, sizes.motion, decode, recompute, sizes)
            sample = make_motion_sample(sizes, shrink=2 if decode == "tiny" else 1)
            train(row, make_objective(sizes, decode, recompute, sample, device), sample)

        return work

    yield Row(part, "plain LoRA step"), plain
    for decode, recompute in DECODES:
        name = f"{decode}, recomputing" if recompute else decode
        yield Row(part, name, base="plain LoRA step"), decoded(decode, recompute)

    def released(tiled: bool) -> Callable[[Row], None]:
        def work(row: Row) -> None:
            vae, flow = make_vae(sizes, device), make_flow_net(sizes, device)
            objective = ReleasedMotionObjective(sizes.motion, vae, flow, sizes.released, tiled)
            train(row, objective, make_motion_sample(sizes))

        return work

    for tiled in (False, True):
        name = f"released code's way, {'tiled' if tiled else 'not tiled'}"
        yield Row(part, name, base="plain LoRA step"), released(tiled)


def list_subject_cases(sizes: Sizes, device: torch.device, steps: int, profile=None) -> Iterator[Case]:
    """Yield all subject steps on the small model."""
    return _list_subject_cases(sizes, device, sizes.spec, steps, f"subject step, {sizes.spec.name}", profile)


def _list_subject_cases(sizes: Sizes, device, spec, steps: int, part: str, profile=None) -> Iterator[Case]:
    """Yield subject steps: without and with SuRA, two pictures at once, and with nothing recomputed."""
    sample = make_subject_sample(sizes)
    base = "region loss alone"

    def work(checkpoint: bool, weight: float, batch: int) -> Callable[[Row], None]:
        def run(row: Row) -> None:
            settings = replace(sizes.subject, sura_weight=weight)
            row.told, row.samples = tell_subject(spec, settings, batch, sizes), batch
            denoiser = make_denoiser(spec, sizes.dtype, device, checkpoint)
            objective = SubjectObjective(settings, spec.dim, sample.features.shape[-1])
            objective.projector.to(device)
            train_measured(row, denoiser, objective, [sample] * batch, settings, steps, batch, profile)

        return run

    weight = sizes.subject.sura_weight
    yield Row(part, base), work(True, 0.0, 1)
    yield Row(part, "with SuRA", base=base), work(True, weight, 1)
    yield Row(part, "with SuRA, 2 pictures at once", base=base), work(True, weight, 2)
    yield Row(part, "with SuRA, nothing recomputed", base=base), work(False, weight, 1)
