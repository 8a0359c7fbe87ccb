"""Low-rank factors of the LoRAs on one linear, whose strengths change while a model is sampled.

They are added to the linear's output in place, by one product for all: on a card, reading and writing an
output once more takes longer than to compute what is added.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...smra_core.lora.adapter import LoraPair


class Strength:
    """Strength of one LoRA in the evaluation that is running."""

    def __init__(self, device: torch.device):
        self.tensor = torch.zeros((), device=device)
        """Read by compiled graphs, which a new number would compile again."""
        self.value = 0.0

    def set(self, value: float) -> None:
        """Set the strength for an evaluation."""
        self.tensor.fill_(value)
        self.value = value


class SwitchedFactors(NamedTuple):
    """The factors of all LoRAs on one linear, one beneath the other, on the device and with their scales."""

    down: Tensor
    """`ranks in`"""
    up: Tensor
    """`ranks out`"""
    parts: list[tuple[slice, Strength]]
    """The ranks of each LoRA, and its strength."""

    @classmethod
    def load(
        cls, pairs: Sequence[tuple[LoraPair, Strength]], device: torch.device, dtype: torch.dtype
    ) -> "SwitchedFactors":
        """Copy the factors of the LoRAs' pairs to a device."""
        downs = [pair.a.detach() for pair, _ in pairs]
        ups = [pair.b.detach().mT * pair.scale for pair, _ in pairs]
        ends = list(itertools.accumulate(map(len, downs)))
        ranks = [slice(end - len(down), end) for end, down in zip(ends, downs, strict=True)]
        down, up = (torch.cat(parts).to(device, dtype, copy=True) for parts in (downs, ups))
        return cls(down, up, [(part, strength) for part, (_, strength) in zip(ranks, pairs, strict=True)])

    def add_to(self, out: Tensor, rows: Tensor) -> Tensor:
        """Return the rows `N out` of an output with the LoRAs of its input `N in` added in place."""
        active = [(ranks, strength.value) for ranks, strength in self.parts if strength.value != 0]
        if len(active) == len(self.parts) > 1:
            image = F.linear(rows, self.down.to(rows.dtype))
            for ranks, strength in active:
                if strength != 1:
                    image[:, ranks] *= strength
            return out.addmm_(image.to(out.dtype), self.up.to(out.dtype))
        for ranks, strength in active:
            image = F.linear(rows, self.down[ranks].to(rows.dtype)).to(out.dtype)
            out.addmm_(image, self.up[ranks].to(out.dtype), alpha=strength)
        return out

    def add_compiled(self, out: Tensor, rows: Tensor) -> Tensor:
        """Return the same as a graph that is compiled once for all strengths; it plans the memory itself."""
        strengths = torch.cat(
            [strength.tensor.expand(ranks.stop - ranks.start) for ranks, strength in self.parts]
        )
        image = F.linear(rows, self.down.to(rows.dtype)) * strengths
        return torch.addmm(out, image.to(out.dtype), self.up.to(out.dtype))
