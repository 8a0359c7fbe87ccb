"""Many LoRAs trained at once on one frozen model: the first axis of every tensor is the run.

The miniature is so small that a GPU is idle most of the time with one run. Here the samples of all runs are
one batch, and each run's LoRA sees the samples of that run alone. Losses, random numbers and optimizer are
those of `train_lora`, so that every run learns what it would learn alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...lora.adapter import Lora, replaced_forwards

Parameters = list[nn.Parameter]
Gradients = list[Tensor | None]


class StackedLora:
    """LoRAs of equal shapes: `a` is `R rank in`, `b` is `R out rank`, for R runs."""

    def __init__(self, loras: Sequence[Lora], device: torch.device):
        """Stack LoRAs with the same linears, ranks and scales."""
        self.runs = len(loras)
        self.strengths = torch.ones(self.runs, device=device)
        self.pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name in loras[0]:
            factors = [torch.stack([getattr(lora[name], factor).data for lora in loras]) for factor in "ab"]
            self.pairs[name] = tuple(nn.Parameter(factor.to(device)) for factor in factors)

    def pick(self, runs: Sequence[int]) -> "StackedLora":
        """Return some of the runs, detached, for sampling."""
        part = StackedLora.__new__(StackedLora)
        part.runs, part.strengths = len(runs), self.strengths[list(runs)]
        part.pairs = {
            name: (a.detach()[list(runs)], b.detach()[list(runs)]) for name, (a, b) in self.pairs.items()
        }
        return part

    @property
    def parameters(self) -> Parameters:
        """The stacked factors, in the order of the linears."""
        return [factor for pair in self.pairs.values() for factor in pair]

    def change_output(self, name: str, x: Tensor) -> Tensor:
        """Return the change of a linear's output for its input `R*B L in`, whose runs follow each other."""
        a, b = self.pairs[name]
        by_run = x.reshape(self.runs, -1, x.shape[-1])
        strengths = self.strengths.to(x)[:, None, None]
        change = torch.bmm(torch.bmm(by_run, a.transpose(1, 2)), b.transpose(1, 2)) * strengths
        return change.reshape(*x.shape[:-1], -1)


@contextmanager
def injected_stack(linears: Mapping[str, nn.Module], stack: StackedLora) -> Iterator[None]:
    """Add each run's LoRA to the outputs of its own samples inside the block."""

    def with_stack(forward: Callable[[Tensor], Tensor], name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: forward(x) + stack.change_output(name, x)

    with replaced_forwards((linears[name], with_stack(linears[name].forward, name)) for name in stack.pairs):
        yield


def measure_norms(gradients: Gradients) -> Tensor:
    """Return the norm `R` of each run's gradient; parameters without one do not count."""
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum(0).sqrt()


def scale_runs(gradients: Gradients, factors: Tensor) -> Gradients:
    """Multiply each run's gradient by its factor, `R`."""
    return [
        None if gradient is None else gradient * factors.view(-1, *[1] * (gradient.ndim - 1))
        for gradient in gradients
    ]


def add_gradients(parts: Sequence[Gradients]) -> Gradients:
    """Return the sum of gradients of the same parameters, of which each may be missing in some."""
    sums = []
    for gradients in zip(*parts, strict=True):
        present = [gradient for gradient in gradients if gradient is not None]
        sums.append(sum(present) if present else None)
    return sums


def balance(aligned: Tensor, velocity: Tensor, share: Tensor) -> Tensor:
    """Return the factors `R` with which alignment gradients of these norms have their shares, as in
    training.gradient_share.
    """
    return share / (1 - share) * velocity / aligned.clamp_min(torch.finfo(aligned.dtype).tiny)


def clip_runs(gradients: Gradients, largest: float) -> Gradients:
    """Scale down each run's gradient whose norm is above `largest`; 0 or less clips nothing."""
    norms = measure_norms(gradients)
    return scale_runs(gradients, (largest / (norms + 1e-6)).clamp(max=1.0)) if largest > 0 else gradients


def apply_gradients(optimizer: torch.optim.Optimizer, parameters: Parameters, gradients: Gradients) -> None:
    """Take one step of the optimizer with these gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
