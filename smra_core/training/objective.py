"""Interface of what is trained: the training loop knows no objective by name."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..wan.interfaces import Denoiser
from ..wan.noise_range import NoiseRange
from .preservation import BaseModel


class Objective(Protocol):
    """Losses and parameters of a training run."""

    weights: Mapping[str, float]
    """Weight of each named loss in the total."""
    shares: Mapping[str, float]
    """Share of the LoRA's gradient that a named loss has in place of its weight, if above 0."""
    shift: float
    """Shift of the training noise levels; 1 is uniform."""
    noise_range: NoiseRange
    """Range that the training noise levels are drawn from."""
    base: BaseModel | None
    """The model without the LoRA, which the loop sets for its duration; base preservation needs it."""
    memory_advice: str
    """Advice for the user when memory runs out (one sentence)."""

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained besides the LoRA, by name."""
        ...

    def losses(
        self, denoiser: Denoiser, batch: Any, sigma: Tensor, noise: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the named losses, each `B`, of collated samples at noise levels sigma `B`."""
        ...
