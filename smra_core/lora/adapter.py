"""LoRA pairs and how they are put onto a frozen model and taken off again without a trace."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..wan.spec import WanSpec
from .plan import SparsePlan


class LoraPair(nn.Module):
    """Two low-rank factors of one linear: `delta(x) = scale * B (A x)`, float32 masters."""

    def __init__(self, a: Tensor, b: Tensor, scale: float = 1.0):
        """`a` is (rank, in_features), `b` is (out_features, rank); scale is alpha / rank."""
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        # The factors are cast, not x: a float32 copy of x per linear would be kept for backward.
        return F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) * self.scale

    def delta(self) -> Tensor:
        """The weight change (out_features, in_features) at strength 1."""
        return self.scale * (self.b @ self.a)


Lora = dict[str, LoraPair]
"""Pairs by native linear name."""


def init_lora(spec: WanSpec, plan: SparsePlan, rank: int, generator: torch.Generator) -> Lora:
    """New pairs for the plan's linears: A kaiming-uniform(sqrt 5), B zero, alpha = rank (as the release).

    The numbers depend on the generator alone, not on global random state.
    """
    return {
        name: _init_pair(spec.linear_shape(name), rank, generator)
        for name in plan.select(spec.linear_names())
    }


def _init_pair(shape: tuple[int, int], rank: int, generator: torch.Generator) -> LoraPair:
    out_features, in_features = shape
    a = nn.init.kaiming_uniform_(torch.empty(rank, in_features), a=math.sqrt(5), generator=generator)
    return LoraPair(a, torch.zeros(out_features, rank))


class Injection:
    """One LoRA on a model, with a strength that can be changed between evaluations; 0 skips it altogether."""

    def __init__(self, lora: Lora, strength: float = 1.0):
        self.lora, self.strength = lora, strength


@contextmanager
def injected(linears: Mapping[str, nn.Module], *injections: Injection) -> Iterator[None]:
    """Add LoRAs to the linears' outputs inside the block; afterwards every module is exactly as before.

    Only the instances' `forward` is replaced: weights, state dict keys and other people's patches stay
    untouched. ValueError when a LoRA names a linear that the model does not have, or one of another shape.
    """
    for injection in injections:
        _check_fit(linears, injection.lora)
    replaced: list[tuple[nn.Module, object]] = []
    try:
        for name, module in linears.items():
            parts = [(inj, inj.lora[name]) for inj in injections if name in inj.lora]
            if parts:
                replaced.append((module, module.__dict__.get("forward")))
                module.forward = _with_pairs(module.forward, parts)
        yield
    finally:
        for module, previous in reversed(replaced):
            if previous is None:
                del module.__dict__["forward"]
            else:
                module.forward = previous


def _with_pairs(forward, parts: list[tuple[Injection, LoraPair]]):
    def forward_with_loras(x: Tensor) -> Tensor:
        y = forward(x)
        for injection, pair in parts:
            if injection.strength:  # skipped at 0, so that the base's bits are kept
                y = y + injection.strength * pair(x)
        return y

    return forward_with_loras


def _check_fit(linears: Mapping[str, nn.Module], lora: Lora) -> None:
    unknown = [name for name in lora if name not in linears]
    if unknown:
        raise ValueError(
            f"The LoRA has {len(unknown)} of {len(lora)} modules that the model lacks, first {unknown[0]!r}; "
            f"the model has {len(linears)} linears. It was probably trained on another WAN (1.3B has 30 "
            "blocks, 14B has 40)."
        )
    for name, pair in lora.items():
        module = linears[name]
        shape = (module.out_features, module.in_features)
        if shape != (pair.b.shape[0], pair.a.shape[1]):
            raise ValueError(
                f"The LoRA's {name} is for a linear of {(pair.b.shape[0], pair.a.shape[1])} (out, in), the "
                f"model's is {shape}. Use a LoRA trained on this model's size."
            )
