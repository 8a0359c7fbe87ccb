"""Base preservation: keep what the frozen model does where the LoRA has nothing to learn.

The velocity with the LoRA is compared with the velocity without it, which takes one more forward pass
without gradient.
"""

import torch
from torch import Tensor

from ..lora.adapter import Injection
from ..wan.condition import ExtraInputs
from ..wan.interfaces import Denoiser, Prediction
from .mask_grid import average_inside

PRESERVE = "preserve"
"""Name of the loss."""

PRESERVE_HELP = (
    "Weight of base preservation, a loss that keeps the model as it was outside of the masks; for clips "
    "without masks, for videos without a prompt. Higher lets the LoRA leak less into the rest of the "
    "picture. It takes one more pass through the model in a step, without masks two; 0 turns it off."
)
"""Explanation of the setting that both losses have."""


class BaseModel:
    """A denoiser with its LoRA off and without gradient; the LoRA is on again after each evaluation."""

    def __init__(self, denoiser: Denoiser, injection: Injection):
        self.denoiser, self.injection = denoiser, injection

    @torch.no_grad()
    def predict(self, noisy: Tensor, sigma: Tensor, context: Tensor, extra: ExtraInputs) -> Prediction:
        """Return the frozen model's prediction; the arguments are those of Denoiser.velocity."""
        strength, self.injection.strength = self.injection.strength, 0.0
        try:
            return self.denoiser.velocity(noisy, sigma, context, extra=extra)
        finally:
            self.injection.strength = strength


def preservation_loss(velocity: Tensor, base_velocity: Tensor, where: Tensor | None = None) -> Tensor:
    """Return L_preserve `B`: the squared difference of two velocities `B C f h w`, averaged over `where`.

    `where` is a mask `B 1 f h w` or None for everywhere; a sample without any such place has loss 0.
    """
    return average_inside((velocity - base_velocity) ** 2, where)
