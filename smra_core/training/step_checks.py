"""What must hold of a step before it is applied: losses and gradients are finite, and adapters have some.

The gradient is scaled down here, too, because its norm is known.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..lora.adapter import Lora
from .objective import Objective
from .state import TrainState
from .step_info import Losses
from .train_settings import TrainSettings

_CLIP_EPSILON = 1e-6
"""What torch's clip_grad_norm_ adds to the norm that it divides by."""


class NonFiniteLoss(ValueError):
    """Error for a loss or gradient that is infinite or not a number; its step was not applied."""


class NoGradient(ValueError):
    """Error for adapters without a gradient, which would never be trained."""


@torch.no_grad()
def measure_gradient(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together; it stays on the device."""
    grads = _list_gradients(parameters)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))) if grads else torch.zeros(())


def _list_gradients(parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]


def check_losses(objective: Objective, names: Sequence[str], losses: Losses, step: int) -> None:
    """Raise NonFiniteLoss if a sample's total loss is not finite; `names` are the samples'."""
    for index, sample in enumerate(names):
        sample_losses = {name: values[index] for name, values in losses.items()}
        total = sum(objective.weights[name] * value for name, value in sample_losses.items())
        if not math.isfinite(total):
            shown = {name: round(value, 4) for name, value in sample_losses.items()}
            raise NonFiniteLoss(
                f"The loss of {sample} is {total} in step {step} ({shown}); the steps before are kept. Look "
                "at that file, or lower the learning rate."
            )


def clip_gradient(state: TrainState, norm: float, settings: TrainSettings, step: int) -> None:
    """Scale the gradient of this norm down to `grad_clip`; NonFiniteLoss if the norm is not finite."""
    if not math.isfinite(norm):
        bad = [
            name
            for name, parameter in state.parameters.items()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        raise NonFiniteLoss(
            f"The gradient is {norm} in step {step}, first in {bad[0] if bad else 'the sum of all'}; the "
            "steps before are kept. Lower the learning rate, or train in float32 or bfloat16."
        )
    if settings.grad_clip and norm > settings.grad_clip:
        torch._foreach_mul_(_list_gradients(state.parameters), settings.grad_clip / (norm + _CLIP_EPSILON))


def check_adapters(lora: Lora) -> None:
    """Raise NoGradient if an adapter has no gradient after the first step."""
    # B starts at zero, so that only B has a gradient in the first step.
    dead = [name for name, pair in lora.items() if pair.b.grad is None or not pair.b.grad.any()]
    if dead:
        raise NoGradient(
            f"{len(dead)} of {len(lora)} adapters have no gradient after step 1, first {dead[0]}: a patch of "
            "the model, or its loader, takes those linears out of the autograd graph. Load the model without "
            "patches, or by another loader."
        )
