"""Exponential moving average (EMA) of a LoRA's weights over the steps of a run."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..lora.adapter import Lora, LoraPair


class LoraAverage:
    """Mean of the weights after each step, in which the past fades by a factor a step.

    The sums start at zero and are divided by the weights that they hold, `1 - decay^steps`, as Adam's
    moments are, so that the mean is one of trained weights alone from the first step on.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.decay = decay
        self.parameters = dict(parameters)
        self.sums: dict[str, Tensor] = {name: torch.zeros_like(each) for name, each in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the mean."""
        for name, total in self.sums.items():
            total.lerp_(self.parameters[name], 1 - self.decay)

    @torch.no_grad()
    def average(self, steps: int) -> dict[str, Tensor]:
        """Return the mean over the first `steps` steps, by the parameters' names."""
        return {name: total / (1 - self.decay**steps) for name, total in self.sums.items()}

    @torch.no_grad()
    def average_lora(self, lora: Lora, steps: int) -> Lora:
        """Return a LoRA of the averaged weights; `lora` holds the parameters `lora.NAME.a` and `.b`."""
        means = self.average(steps)
        return {
            name: LoraPair(means[f"lora.{name}.a"], means[f"lora.{name}.b"], pair.scale)
            for name, pair in lora.items()
        }
