"""Losses by band of noise: what a LoRA learns at low, middle and high noise, apart from one another."""

import re
from collections.abc import Mapping, Sequence

import torch

from ..wan.flow_matching import spread_over_range
from ..wan.noise_range import NoiseRange

BANDS = 3
"""Number of bands: more would show each of them from too few samples."""
_COLUMN = re.compile(r"(?P<loss>.+) at sigma (?P<low>[\d.]+) to (?P<high>[\d.]+)")


class NoiseBands:
    """Bands of a noise range, each of which training draws equally often."""

    def __init__(self, noise_range: NoiseRange, shift: float = 1.0):
        shares = torch.arange(1, BANDS, dtype=torch.float64) / BANDS
        inner = spread_over_range(shares, noise_range, shift).tolist()
        self.edges = [noise_range.low, *inner, noise_range.high]
        """Noise levels from low to high that the bands lie between."""

    def find(self, sigma: float) -> int:
        """Return the index of the band that a noise level lies in; one at an edge is in the lower band."""
        return sum(sigma > edge for edge in self.edges[1:-1])

    def name_columns(self, loss: str) -> list[str]:
        """Return what the losses of each band are called, such as `region at sigma 0.33 to 0.67`."""
        edges = [f"{edge:.3g}" for edge in self.edges]
        return [f"{loss} at sigma {low} to {high}" for low, high in zip(edges, edges[1:], strict=False)]

    def average(
        self, sigmas: Sequence[float], losses: Mapping[str, Sequence[float]]
    ) -> dict[str, float | None]:
        """Return the mean of each loss in each band, by the names of the columns; None for a band without a
        sample.
        """
        means: dict[str, float | None] = {}
        for loss, values in losses.items():
            for band, column in enumerate(self.name_columns(loss)):
                inside = [
                    value for sigma, value in zip(sigmas, values, strict=True) if self.find(sigma) == band
                ]
                means[column] = sum(inside) / len(inside) if inside else None
        return means


def split_columns(columns: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Sequence[float]]]:
    """Return the columns of bands in a table of losses: for each loss the values by `LOW to HIGH`."""
    by_loss: dict[str, dict[str, Sequence[float]]] = {}
    for name, values in columns.items():
        if match := _COLUMN.fullmatch(name):
            by_loss.setdefault(match["loss"], {})[f"{match['low']} to {match['high']}"] = values
    return by_loss


def is_band(column: str) -> bool:
    """Return whether a column of a table of losses is of one band."""
    return _COLUMN.fullmatch(column) is not None
