"""Backward pass of a micro-batch in which an alignment loss may have a fixed share of the LoRA's gradient.

With a constant weight, the flow loss is a hundredth of the step at low noise and a quarter at high noise, and
the alignment with DINOv2 nearly nothing anywhere. A share holds at every noise level, on every model.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..wan.settings import Limits

log = logging.getLogger("smrabooth")

SHARE = Limits(0, 0.95)
"""Limits of a share of the gradient: with 1, nothing would be left of the other losses."""


def backpropagate(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    shares: Mapping[str, float],
    lora: Sequence[nn.Parameter],
    others: Sequence[nn.Parameter],
    factor: float = 1.0,
) -> None:
    """Add `factor` times the gradient of the weighted mean losses `B` to the `grad` of all parameters.

    A loss with a share s above 0 is scaled in the LoRA's gradient, in place of its weight, so that its norm
    is s / (1 - s) times that of all losses without a share, on the parameters that it reaches: s of the sum
    of both norms. What it gives to the `others`, such as a projector, keeps the weight. This takes one more
    backward pass for each loss with a share.
    """
    shared = [name for name in losses if shares.get(name)]
    if not shared:
        total = sum(weights[name] * losses[name] for name in losses)
        (factor * total.mean()).backward()
        return
    plain = sum(weights[name] * losses[name] for name in losses if name not in shared)
    parameters = [*lora, *others]
    base = _compute_gradient(plain, parameters)
    _add(parameters, base, factor)
    for name in shared:
        gradient = _compute_gradient(weights[name] * losses[name], parameters)
        scale = find_scale(gradient[: len(lora)], base[: len(lora)], shares[name])
        _add(lora, gradient[: len(lora)], factor * scale)
        _add(others, gradient[len(lora) :], factor)


def warn_of_unused_shares(weights: Mapping[str, float], shares: Mapping[str, float]) -> None:
    """Warn of each loss that has a share and the weight 0, which turns it off."""
    for name, share in shares.items():
        if share and not weights[name]:
            log.warning(
                "%s_share %g has no effect, because %s_weight 0 turns that loss off. Set %s_weight above 0; "
                "with a share, its size does not matter to the LoRA.",
                name, share, name, name,
            )  # fmt: skip


def find_scale(aligned: Sequence[Tensor | None], base: Sequence[Tensor | None], share: float) -> Tensor:
    """Return the factor that gives the aligned gradient its share, where it is not None; 0 if it vanishes.

    It stays on the device, so that a step does not wait for it.
    """
    reached = [index for index, gradient in enumerate(aligned) if gradient is not None]
    norm, base_norm = (_measure_norm([part[index] for index in reached]) for part in (aligned, base))
    return torch.where(norm > 0, share / (1 - share) * base_norm / norm, 0.0)


def _compute_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss.mean(), parameters, retain_graph=True, allow_unused=True)


def _measure_norm(gradients: Sequence[Tensor | None]) -> Tensor:
    present = [gradient.norm() for gradient in gradients if gradient is not None]
    return torch.stack(present).norm() if present else torch.zeros(())


def _add(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], factor: float | Tensor
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = factor * gradient
        else:
            parameter.grad.add_(factor * gradient)
