"""Rows of sampling: evaluations of the DiT with two merged LoRAs, and with strengths that switch."""

from collections.abc import Callable, Iterator

import torch

from smra_core.lora.adapter import Lora, init_lora
from smra_core.lora.plan import MOTION, SUBJECT
from smra_core.lora.schedule import SUBJECT_STRENGTHS, ScheduledLora, Strengths, TPoint, scheduled
from smra_core.wan.sampler import initial_noise, sample
from tests.benchmarks.gpu.meter import Row, measured
from tests.benchmarks.gpu.models import make_context, make_denoiser
from tests.benchmarks.gpu.node_swap import SwappedDenoiser
from tests.benchmarks.gpu.sizes import Sizes

LEVELS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0)
"""Noise levels of the run; the strengths switch in its middle."""
PART, BASE = "evaluation while sampling", "both merged"


def make_lora(spec, plan, rank: int, device) -> Lora:
    """Make a LoRA that changes the model a little; its factors are on the device."""
    generator = torch.Generator().manual_seed(rank)
    lora = init_lora(spec, plan, rank, generator)
    for pair in lora.values():
        pair.b.data.normal_(std=1e-3, generator=generator)
        pair.to(device)
    return lora


@torch.no_grad()
def merge(denoiser, lora: Lora) -> None:
    """Add a LoRA to the weights of a model."""
    linears = denoiser.linears()
    for name, pair in lora.items():
        linears[name].weight += pair.delta().to(linears[name].weight.dtype)


def list_sampling_cases(sizes: Sizes, device: torch.device) -> Iterator[tuple[Row, Callable[[Row], None]]]:
    """Yield the merged LoRAs, the same again, and three ways whose strengths switch."""
    switched, constant = SUBJECT_STRENGTHS, Strengths.from_value(1.0)
    yield Row(PART, BASE), _merged(sizes, device)
    yield Row(PART, "the subject's switches, by the node's way", base=BASE), _node(sizes, device, [switched])
    both = [switched, Strengths(1.0, 0.5)]
    yield Row(PART, "both switch, by the node's way", base=BASE), _node(sizes, device, both)
    yield Row(PART, "both, by the core's own way", base=BASE), _core(sizes, device, [switched, constant])
    yield Row(PART, "both merged, measured again", base=BASE), _merged(sizes, device)


def _make_loras(sizes: Sizes, device) -> list[Lora]:
    spec = sizes.spec
    return [make_lora(spec, SUBJECT, 32, device), make_lora(spec, MOTION, 64, device)]


def _merged(sizes: Sizes, device) -> Callable[[Row], None]:
    def work(row: Row) -> None:
        denoiser = make_denoiser(sizes.spec, sizes.dtype, device, checkpoint=False)
        for lora in _make_loras(sizes, device):
            merge(denoiser, lora)
        sample_measured(row, denoiser, sizes, device)

    return work


def _node(sizes: Sizes, device, strengths: list[Strengths]) -> Callable[[Row], None]:
    """Switch the first LoRAs, and merge those for which no strengths are given."""

    def work(row: Row) -> None:
        denoiser = make_denoiser(sizes.spec, sizes.dtype, device, checkpoint=False)
        loras = _make_loras(sizes, device)
        for lora in loras[len(strengths) :]:
            merge(denoiser, lora)
        switched = [ScheduledLora(*each) for each in zip(loras, strengths, strict=False)]
        swapped = SwappedDenoiser(denoiser, switched, TPoint(), torch.tensor(LEVELS), sizes.dtype)
        sample_measured(row, swapped, sizes, device)

    return work


def _core(sizes: Sizes, device, strengths: list[Strengths]) -> Callable[[Row], None]:
    def work(row: Row) -> None:
        denoiser = make_denoiser(sizes.spec, sizes.dtype, device, checkpoint=False)
        loras = [ScheduledLora(*each) for each in zip(_make_loras(sizes, device), strengths, strict=True)]
        with scheduled(denoiser.linears(), loras, TPoint(), LEVELS) as set_strengths:
            sample_measured(row, denoiser, sizes, device, set_strengths)

    return work


def sample_measured(row: Row, denoiser, sizes: Sizes, device, on_evaluation=None) -> None:
    """Sample without guidance, one evaluation a step, and fill the row."""
    context = make_context(sizes)[None].to(device, sizes.dtype)
    start = initial_noise(sizes.sampling, sizes.spec.latents).to(device)
    with measured(row, device) as meter:
        sample(
            denoiser, start, torch.tensor(LEVELS), context, context, guidance=1.0, on_step=meter.mark,
            on_evaluation=on_evaluation,
        )  # fmt: skip
