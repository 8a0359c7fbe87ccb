"""Loss of an item that is left out of training: it rises again when the LoRA learns the others by heart."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from ..wan.flow_matching import spread_over_range
from ..wan.interfaces import Denoiser
from .batches import Sample, collate, move_to_device
from .objective import Objective
from .random_stream import make_generator

HELD_OUT = "held out "
"""Beginning of the names of the losses of the item that is left out."""
LEVELS = 3
"""Number of noise levels at which the item is evaluated: the middles of the bands of noise."""
Item = TypeVar("Item")


def leave_one_out(items: Sequence[Item], held_out_every: int) -> tuple[Sequence[Item], Sequence[Item]]:
    """Return the items to train on and those that are left out: the last one, where it is to be measured.

    Raises ValueError when there is no other item to train on.
    """
    if not held_out_every:
        return items, []
    if len(items) < 2:
        raise ValueError(
            "held_out_every leaves one item out of training, and there is only one. Give more, or set "
            "held_out_every to 0."
        )
    return items[:-1], items[-1:]


def measure_held_out(
    denoiser: Denoiser, objective: Objective, samples: Sequence[Sample], seed: int, device: torch.device
) -> dict[str, float]:
    """Return the mean of each loss over the samples and LEVELS noise levels, called `held out NAME`.

    Noise levels and noise are the same each time, so that the values of two steps can be compared.
    """
    shares = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    sigmas = spread_over_range(shares, objective.noise_range, objective.shift).float()
    values: dict[str, list[float]] = {}
    for index, sample in enumerate(samples):
        batch = move_to_device(collate([sample]), device)
        for level, sigma in enumerate(sigmas):
            generator = make_generator(seed, "held out", index, level)
            noise = torch.randn(batch.latents.shape, generator=generator).to(device)
            with torch.no_grad():
                losses = objective.losses(denoiser, batch, sigma[None].to(device), noise, generator)
            for name, loss in losses.items():
                values.setdefault(HELD_OUT + name, []).append(loss.item())
    return {name: sum(each) / len(each) for name, each in values.items()}
