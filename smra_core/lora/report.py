"""Readable report on a LoRA file: its modules, norms, plan and metadata."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..wan.spec import Role, parse_linear
from .adapter import LoraPair
from .plan import PLANS, SparsePlan
from .reader import LoadedLora


@dataclass(frozen=True)
class LoraReport:
    """Counts and norms of one LoRA."""

    dialect: str
    """Dialect of its names."""
    about: dict[str, str]
    """Metadata of the file that is not empty, as text."""
    plan: str
    """Roles that are present, with the plan's name where it has one."""
    ranks: tuple[int, ...]
    modules: dict[str, int]
    """Number of modules of each role."""
    role_norms: dict[str, float]
    block_norms: dict[int, float]
    """Frobenius norm of all weight changes of each role or block at strength 1."""
    account: str
    """Sentence on how many tensors of the file are used, and what the others are."""
    notes: tuple[str, ...]
    """Sentences on what the file leaves open and how it was read."""


def describe_lora(loaded: LoadedLora) -> LoraReport:
    """Collect counts and norms of a loaded LoRA."""
    squares = {name: compute_delta_norm(pair) ** 2 for name, pair in loaded.lora.items()}
    by_role, by_block, modules = defaultdict(float), defaultdict(float), defaultdict(int)
    for name, square in squares.items():
        block, _, role = parse_linear(name)
        by_role[role.value] += square
        by_block[block] += square
        modules[role.value] += 1
    about = {key: str(value) for key, value in vars(loaded.metadata).items() if value}
    return LoraReport(
        loaded.dialect,
        about,
        _name_plan(frozenset(Role(role) for role in modules)),
        tuple(sorted({pair.rank for pair in loaded.lora.values()})),
        dict(modules),
        {role: square**0.5 for role, square in by_role.items()},
        {block: square**0.5 for block, square in sorted(by_block.items())},
        loaded.account,
        loaded.notes,
    )


@torch.no_grad()
def compute_delta_norm(pair: LoraPair) -> float:
    """Return the Frobenius norm of scale * B A without the product: its square is the trace of (B'B)(AA')."""
    b, a = pair.b.double(), pair.a.double()
    return abs(pair.scale) * _trace(b.mT @ b, a @ a.mT).clamp_min(0).sqrt().item()


def _trace(first: Tensor, second: Tensor) -> Tensor:
    return (first * second.mT).sum()


def _name_plan(roles: frozenset[Role]) -> str:
    plan = SparsePlan(roles)
    named = [name for name, known in PLANS.items() if known == plan]
    return f"{plan} ({named[0]})" if named else str(plan)


def render_report(report: LoraReport) -> str:
    """Render the report as lines of text."""
    about = [f"{key.replace('_', ' '):<12}{value}" for key, value in report.about.items()]
    ranks = ", ".join(map(str, report.ranks))
    total = sum(report.modules.values())
    head = [f"{'dialect':<12}{report.dialect}", f"{'roles':<12}{report.plan}", f"{'ranks':<12}{ranks}"]
    roles = [
        f"  {role:<8}{report.modules[role]:>5}{report.role_norms[role]:>12.4f}"
        for role in sorted(report.modules, key=[r.value for r in Role].index)
    ]
    blocks = [f"  {block:<8}{norm:>17.4f}  {bar}" for block, norm, bar in _draw_bars(report.block_norms)]
    lines = [*about, *head, f"{'modules':<12}{total}", "", "  role    count        norm", *roles, ""]
    lines += ["  block                norm", *blocks]
    lines += ["", *(line for line in (report.account, *report.notes) if line)]
    return "\n".join(lines)


def _draw_bars(norms: dict[int, float], width: int = 30) -> Iterable[tuple[int, float, str]]:
    largest = max(norms.values()) or 1.0
    return [(block, norm, "#" * round(width * norm / largest)) for block, norm in norms.items()]
