"""Groups of a LoRA's layers: one for each role and each range of blocks, and the LoRA without a group."""

from ..wan.spec import Role, parse_linear
from .adapter import Lora
from .plan import ALL_ROLES, SparsePlan


def list_roles(lora: Lora) -> list[SparsePlan]:
    """Return a plan of each role that the LoRA has, in the order of Role."""
    present = {parse_linear(name).role for name in lora}
    return [SparsePlan(frozenset({role})) for role in Role if role in present]


def list_block_ranges(lora: Lora, ranges: int) -> list[SparsePlan]:
    """Return a plan of each of so many ranges of blocks, or fewer if the LoRA reaches over fewer blocks.

    Their sizes differ by at most one block, and together they cover the blocks from the first to the last
    that the LoRA has. A range in which it has no layer is left out. Raises ValueError for less than 1 range.
    """
    if ranges < 1:
        raise ValueError(f"The blocks are split into {ranges} ranges; give at least 1.")
    blocks = {parse_linear(name).block for name in lora}
    first, count = min(blocks), max(blocks) - min(blocks) + 1
    number = min(ranges, count)
    edges = [first + count * index // number for index in range(number + 1)]
    plans = [SparsePlan(ALL_ROLES, edge) for edge in zip(edges, edges[1:], strict=False)]
    return [plan for plan in plans if plan.select(lora)]


def keep_group(lora: Lora, plan: SparsePlan) -> Lora:
    """Return the LoRA's pairs that belong to a plan: all others count as zero."""
    return {name: lora[name] for name in plan.select(lora)}


def leave_out(lora: Lora, plan: SparsePlan) -> Lora:
    """Return the LoRA's pairs that do not belong to a plan."""
    return {name: pair for name, pair in lora.items() if not plan.includes(name)}
