"""Measure how much of a LoRA's effect a part of it has, by the velocities predicted along a sampling run."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.adapter import Injection, Lora, injected
from ..wan.condition import NO_INPUTS, ExtraInputs
from ..wan.interfaces import Denoiser
from ..wan.sampler import SamplingSettings

PROBE_SAMPLING = SamplingSettings(steps=8, shift=5.0, width=480, height=272, frames=17)
"""The run that a LoRA is measured in: short and small, since each part of it is evaluated at every step."""


class RunPoint(NamedTuple):
    """One evaluation of the model in a run with the whole LoRA."""

    latents: Tensor
    """Noisy latents `B C f h w`."""
    sigma: float
    base: Tensor
    """Velocity without the LoRA, `B C f h w`."""
    change: Tensor
    """What the whole LoRA adds to it, `B C f h w`."""


class VelocityChange:
    """Measure (see layer_probe) of a part of a LoRA by the velocity that it adds.

    A video is sampled with the whole LoRA, without guidance. At each of its steps the velocity that a part
    adds is projected on what the whole LoRA adds. 1 is all of it; a part that works against the whole is
    below 0.
    """

    def __init__(self, denoiser: Denoiser, context: Tensor, extra: ExtraInputs = NO_INPUTS):
        """Take the model, the text context `B T 4096` to sample, and what a variant takes besides."""
        self.denoiser, self.context, self.extra = denoiser, context, extra
        self.points: list[RunPoint] = []

    @torch.no_grad()
    def record(self, lora: Lora, start: Tensor, sigmas: Sequence[float]) -> None:
        """Sample with the whole LoRA from noise `B C f h w` over these levels, and keep each evaluation.

        Raises ValueError for a LoRA that changes nothing, as there is nothing to share out.
        """
        latents, self.points = start, []
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            base = self._predict({}, latents, sigma)
            whole = self._predict(lora, latents, sigma)
            self.points.append(RunPoint(latents, sigma, base, whole - base))
            latents = latents + (following - sigma) * whole
        if not any(point.change.any() for point in self.points):
            raise ValueError("The LoRA changes nothing of this model's predictions: its weights are zero.")

    @torch.no_grad()
    def __call__(self, part: Lora) -> float:
        """Return the share of the whole LoRA's change that a part of it makes, over all recorded steps."""
        changes = [self._predict(part, point.latents, point.sigma) - point.base for point in self.points]
        return compute_projection(changes, [point.change for point in self.points])

    def _predict(self, part: Lora, latents: Tensor, sigma: float) -> Tensor:
        level = latents.new_full((len(latents),), sigma, dtype=torch.float32)
        with injected(self.denoiser.linears(), Injection(part)):
            return self.denoiser.velocity(latents, level, self.context, extra=self.extra).velocity.float()


def compute_projection(parts: Sequence[Tensor], wholes: Sequence[Tensor]) -> float:
    """Return the coefficient of the projection of `parts` on `wholes`, two lists of tensors of equal shapes.

    It is 1 for equal lists, 0 for a part without effect or at right angles to the whole.
    """
    # On the CPU, because Apple's GPUs have no float64.
    pairs = [(part.cpu().double(), whole.cpu().double()) for part, whole in zip(parts, wholes, strict=True)]
    dots = sum((part * whole).sum() for part, whole in pairs)
    return float(dots / sum(whole.square().sum() for _, whole in pairs))
