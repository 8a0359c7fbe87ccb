"""A mean over seeds with its 95 % interval, by a bootstrap."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DRAWS = 2000
"""Number of bootstrap samples."""
LEVELS = (0.025, 0.975)


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def estimate_ratio(values: Sequence[float], divisors: Sequence[float] | None = None) -> Interval:
    """Return the sum of values over the sum of divisors, one of each for every seed, with a 95 % interval.

    Without divisors it is the mean. Seeds are drawn with replacement; the draws are always the same. Raise
    ValueError for fewer than two seeds, which give no interval.
    """
    if len(values) < 2:
        raise ValueError(f"An interval over seeds needs at least 2 seeds, got {len(values)}.")
    above = torch.tensor(values, dtype=torch.float64)
    below = torch.ones_like(above) if divisors is None else torch.tensor(divisors, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (DRAWS, len(values)), generator=generator)
    ratios = _divide(above[drawn].sum(1), below[drawn].sum(1))
    low, high = ratios.quantile(torch.tensor(LEVELS, dtype=torch.float64)).tolist()
    return Interval(_divide(above.sum(), below.sum()).item(), low, high)


def _divide(above: Tensor, below: Tensor) -> Tensor:
    return above / below.clamp_min(1e-9)
