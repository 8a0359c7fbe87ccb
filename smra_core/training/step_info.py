"""The report of a finished step: losses of all samples, fetched from the device at once and averaged."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from .noise_bands import NoiseBands
from .objective import Objective
from .ranks import Ranks
from .train_settings import TrainSettings


class StepInfo(NamedTuple):
    """Report of a finished step."""

    step: int
    """Number of the step, from 1."""
    steps: int
    """Number of steps of the whole run."""
    losses: dict[str, float]
    """Losses by name, unweighted, averaged over the step's samples."""
    total: float
    """Weighted sum of the losses."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    seconds: float
    """Time that the step took."""
    by_noise: dict[str, float | None]
    """Each loss by band of noise (see NoiseBands); None for a band that none of the step's samples is in."""
    held_out: dict[str, float] = {}
    """Losses of the item that is left out, before the step; empty in steps in which they are not measured."""
    kept: Path | None = None
    """LoRA file that was kept after the step, or None."""


class MicroBatch(NamedTuple):
    """What is known of a micro-batch after its backward pass."""

    names: list[str]
    """Names of its samples."""
    sigma: Tensor
    """Noise levels `B` of the samples, on the CPU."""
    losses: dict[str, Tensor]
    """Losses by name, `B` each, detached and still on the device."""


Losses = dict[str, list[float]]
"""Losses of a step by name, one number for each sample of all its micro-batches."""


def gather_batches(batches: list[MicroBatch], ranks: Ranks) -> list[MicroBatch]:
    """Return the micro-batches of all ranks, on the CPU unless there is one rank alone."""
    if ranks.count == 1:
        return batches
    own = [
        batch._replace(losses={name: loss.cpu() for name, loss in batch.losses.items()}) for batch in batches
    ]
    return [batch for each in ranks.gather(own) for batch in each]


def fetch_losses(batches: Sequence[MicroBatch], norm: Tensor) -> tuple[Losses, float]:
    """Return the losses of a step's samples, and the norm, in one transfer.

    It is the only time in a step that the CPU waits for the device.
    """
    by_name = {name: [batch.losses[name] for batch in batches] for name in batches[0].losses}
    parts = [part.to(norm) for values in by_name.values() for part in values]
    numbers = iter(torch.cat([norm[None], *parts]).tolist())
    norm_number = next(numbers)
    return {
        name: list(itertools.islice(numbers, sum(map(len, values)))) for name, values in by_name.items()
    }, norm_number


def make_step_info(
    settings: TrainSettings,
    objective: Objective,
    batches: Sequence[MicroBatch],
    losses: Losses,
    grad_norm: float,
    step: int,
    seconds: float,
) -> StepInfo:
    """Average the losses of a step's micro-batches into its report."""
    sigmas = torch.cat([batch.sigma for batch in batches]).tolist()
    means = {name: fmean(values) for name, values in losses.items()}
    total = sum(objective.weights[name] * value for name, value in means.items())
    by_noise = NoiseBands(objective.noise_range, objective.shift).average(sigmas, losses)
    return StepInfo(step, settings.steps, means, total, grad_norm, seconds, by_noise)
