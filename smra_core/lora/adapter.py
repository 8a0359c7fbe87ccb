"""LoRA pairs, and context managers that add them to a frozen model and remove them without a trace."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..wan.spec import SPECS, WanSpec, parse_linear
from .frozen_linear import FrozenForward
from .plan import SparsePlan


class LoraPair(nn.Module):
    """Two low-rank factors of one linear: `y = scale * B (A x)`, with float32 master weights."""

    def __init__(self, a: Tensor, b: Tensor, scale: float = 1.0):
        """Take the factors `a` (rank, in_features) and `b` (out_features, rank); scale is alpha / rank."""
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    @property
    def rank(self) -> int:
        """Rank of the pair."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features) of the linear that the pair belongs to."""
        return self.b.shape[0], self.a.shape[1]

    def add_to(self, y: Tensor, x: Tensor, strength: float) -> Tensor:
        """Return the linear's output `... out` for its input `... in`, with the LoRA added at a strength: in
        place where no gradient is taken.
        """
        image, b = F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)
        add = torch.addmm if torch.is_grad_enabled() else Tensor.addmm_
        rows = add(y.flatten(0, -2), image.flatten(0, -2), b.T, alpha=strength * self.scale)
        return rows.view(*y.shape)

    def delta(self) -> Tensor:
        """Return the weight change (out_features, in_features) at strength 1."""
        return self.scale * (self.b @ self.a)


Lora = dict[str, LoraPair]
"""LoRA pairs by native linear name."""


def init_lora(spec: WanSpec, plan: SparsePlan, rank: int, generator: torch.Generator) -> Lora:
    """Create pairs for the plan's linears: A kaiming-uniform(sqrt 5), B zero, alpha = rank (as the release).

    The values depend on the generator alone, not on global random state.
    """
    return {
        name: _init_pair(spec.linear_shape(name), rank, generator)
        for name in plan.select(spec.linear_names())
    }


def _init_pair(shape: tuple[int, int], rank: int, generator: torch.Generator) -> LoraPair:
    out_features, in_features = shape
    a = nn.init.kaiming_uniform_(torch.empty(rank, in_features), a=math.sqrt(5), generator=generator)
    return LoraPair(a, torch.zeros(out_features, rank))


def restrict(lora: Lora, plan: SparsePlan | None, source: str = "The LoRA") -> Lora:
    """Return the pairs that a plan includes, or all without a plan; raise ValueError when none is left.

    `source` is the name of the LoRA in the message.
    """
    if plan is None:
        return lora
    included = {name: lora[name] for name in plan.select(lora)}
    if not included:
        blocks = sorted({parse_linear(name).block for name in lora})
        roles = SparsePlan(frozenset(parse_linear(name).role for name in lora))
        raise ValueError(
            f"Plan {plan} leaves none of the {len(lora)} modules of {source}: it has {roles} in blocks "
            f"{blocks[0]} to {blocks[-1]}. Choose all layers, or check that this is the file you meant."
        )
    return included


def check_fit(
    shapes: Mapping[str, tuple[int, int]], lora: Lora, source: str = "The LoRA", model: str = "the model"
) -> None:
    """Raise ValueError unless the model has each of the LoRA's linears, in the LoRA's shape.

    `shapes` holds (out_features, in_features) of the model's linears by native name; `source` and `model` are
    the names of the two in the message.
    """
    unfit = [name for name, pair in lora.items() if shapes.get(name) != pair.shape]
    if not unfit:
        return
    name = unfit[0]
    has = f"the model's is {tuple(shapes[name])}" if name in shapes else "the model has none of that name"
    blocks, own = ({parse_linear(each).block for each in names} for names in (lora, shapes))
    known = [spec.name for spec in SPECS if all(_fits(each, pair, spec) for each, pair in lora.items())]
    raise ValueError(
        f"{source} does not fit {model}: {name} is for a linear of {lora[name].shape} (out, in), {has}; "
        f"the LoRA reaches over {1 + max(blocks)} blocks, the model has {1 + max(own, default=-1)}; "
        f"{len(unfit)} of {len(lora)} modules do not fit. "
        + (f"It was trained on {known[0]}: load that model. " if known else "")
        + "Use a LoRA trained on this model."
    )


def _fits(name: str, pair: LoraPair, spec: WanSpec) -> bool:
    return parse_linear(name).block < spec.blocks and pair.shape == spec.linear_shape(name)


class Injection:
    """One LoRA on a model, with a strength that can be changed between evaluations; 0 skips the LoRA."""

    def __init__(self, lora: Lora, strength: float = 1.0):
        self.lora, self.strength = lora, strength


@contextmanager
def injected(linears: Mapping[str, nn.Module], *injections: Injection) -> Iterator[None]:
    """Add LoRAs to the linears' outputs inside the block; afterwards every module is exactly as before.

    Only the instances' `forward` is replaced: weights, state dict keys and patches by other code stay as they
    are. Raises ValueError when a LoRA has a linear that the model does not have, or has in another shape.
    """
    shapes = {name: (module.out_features, module.in_features) for name, module in linears.items()}
    for injection in injections:
        check_fit(shapes, injection.lora)
    with replaced_forwards(_add_pairs(linears, injections)):
        yield


def _add_pairs(
    linears: Mapping[str, nn.Module], injections: tuple[Injection, ...]
) -> Iterator[tuple[nn.Module, Callable]]:
    for name, module in linears.items():
        parts = [(injection, injection.lora[name]) for injection in injections if name in injection.lora]
        if parts:
            yield module, _ForwardWithLoras(module.forward, parts)


class _ForwardWithLoras:
    """A linear's `forward` with the outputs of LoRAs added."""

    def __init__(self, forward: Callable, parts: list[tuple[Injection, LoraPair]]):
        self.forward, self.parts = forward, parts

    def __call__(self, x: Tensor) -> Tensor:
        # Skipped at 0, so that the output stays bit-equal to the base model's.
        active = [(pair, injection.strength) for injection, pair in self.parts if injection.strength]
        if len(active) == 1 and isinstance(self.forward, FrozenForward) and torch.is_grad_enabled():
            pair, strength = active[0]
            return self.forward.with_lora(x, pair.a, pair.b, strength * pair.scale)
        y = self.forward(x)
        for pair, strength in active:
            y = pair.add_to(y, x, strength)
        return y

    def list_parameters(self) -> list[Tensor]:
        """Return the factors of the LoRAs."""
        return [factor for _, pair in self.parts for factor in (pair.a, pair.b)]


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Replace the `forward` of modules inside the block; afterwards each has exactly the one it had.

    The pairs are read one after the other, so that a generator may use the `forward` of a module that an
    earlier pair has replaced already.
    """
    replaced: list[tuple[nn.Module, Callable | None]] = []
    try:
        for module, forward in forwards:
            replaced.append((module, module.__dict__.get("forward")))
            module.forward = forward
        yield
    finally:
        # Last in, first out: one module may have been replaced more than once.
        for module, previous in reversed(replaced):
            if previous is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = previous
