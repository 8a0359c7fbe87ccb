"""Layer probe: what each role and each range of blocks of a LoRA contributes.

Paper, the "LoRA sparsity experiments" of "Subject-Motion Association Decoupling": the LoRA with all of its
layers is 100 %, and the layers that are not looked at are set to zero. The paper measures videos; what is
measured here is the caller's choice (see velocity_change.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..lora.adapter import Lora
from ..lora.layer_groups import keep_group, leave_out, list_block_ranges, list_roles
from ..lora.plan import SparsePlan
from ..wan.settings import COUNT, Limits, check_limits, declare_setting
from ..wan.spec import Role

Measure = Callable[[Lora], float]
"""Function that returns what a part of a LoRA does as a share: 0 without LoRA, 1 with all of its layers."""


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured of a LoRA, and how much of it the plan shall keep."""

    block_ranges: int = declare_setting(
        5,
        "Ranges that the blocks are split into. More show finer where the LoRA works and take longer.",
        COUNT,
    )
    keep: float = declare_setting(
        0.8,
        "Share of the whole LoRA's effect that the plan must keep. Raising it keeps more layers.",
        Limits(most=1, above=0),
    )

    def __post_init__(self):
        check_limits(self)


class GroupShare(NamedTuple):
    """What one group of layers contributes, as shares of the whole LoRA's effect."""

    plan: SparsePlan
    """The group: one role, or one range of blocks."""
    alone: float
    """Effect of the group alone, with all other layers at zero."""
    lost: float
    """Effect that is lost when this group alone is at zero."""

    @property
    def label(self) -> str:
        """Name of the group for a table or chart."""
        if self.plan.blocks is None:
            return ",".join(role.value for role in Role if role in self.plan.roles)
        first, end = self.plan.blocks
        return f"block {first}" if end == first + 1 else f"blocks {first}-{end - 1}"


class LayerProbe(NamedTuple):
    """Contributions of a LoRA's groups of layers, and the plan that keeps enough of its effect."""

    roles: tuple[GroupShare, ...]
    blocks: tuple[GroupShare, ...]
    plan: SparsePlan
    kept: float
    """Share of the whole LoRA's effect that was measured with the plan."""
    layers: tuple[int, int]
    """Number of layers in the plan, and in the LoRA."""


def measure_layers(
    lora: Lora,
    measure: Measure,
    settings: ProbeSettings,
    on_measure: Callable[[], None] = lambda: None,
) -> LayerProbe:
    """Measure each role and each range of blocks alone and left out, and find a plan that keeps enough.

    `on_measure` is called after each measurement; `count_measurements` tells how many there are at most.
    """

    def measure_part(part: Lora) -> float:
        share = measure(part)
        on_measure()
        return share

    def measure_groups(plans: Sequence[SparsePlan]) -> tuple[GroupShare, ...]:
        return tuple(
            GroupShare(plan, measure_part(keep_group(lora, plan)), 1 - measure_part(leave_out(lora, plan)))
            for plan in plans
        )

    roles = measure_groups(list_roles(lora))
    blocks = measure_groups(list_block_ranges(lora, settings.block_ranges))
    plan, kept = find_plan(lora, measure_part, roles, blocks, settings.keep)
    return LayerProbe(roles, blocks, plan, kept, (len(plan.select(lora)), len(lora)))


def count_measurements(lora: Lora, settings: ProbeSettings) -> int:
    """Return the largest number of measurements that `measure_layers` makes."""
    groups = len(list_roles(lora)), len(list_block_ranges(lora, settings.block_ranges))
    return 3 * sum(groups) - 2


def find_plan(
    lora: Lora, measure: Measure, roles: Sequence[GroupShare], blocks: Sequence[GroupShare], keep: float
) -> tuple[SparsePlan, float]:
    """Return a plan that keeps at least the share `keep` of the LoRA's effect, and the share that it keeps.

    Roles are added, the one that does most alone first, until their measured effect is enough. Then ranges of
    blocks are left out at whichever end does less alone, for as long as the rest is enough. Each candidate is
    measured, because what groups do together is not the sum of what they do alone.
    """
    ranked = sorted(roles, key=lambda share: share.alone, reverse=True)
    for count in range(1, len(ranked) + 1):
        plan = SparsePlan(frozenset().union(*(share.plan.roles for share in ranked[:count])))
        kept = 1.0 if count == len(ranked) else measure(keep_group(lora, plan))
        if kept >= keep:
            break
    left = list(blocks)
    while len(left) > 1:
        rest = left[1:] if left[0].alone <= left[-1].alone else left[:-1]
        smaller = SparsePlan(plan.roles, _join_ranges(rest))
        share = measure(keep_group(lora, smaller))
        if share < keep:
            break
        left, plan, kept = rest, smaller, share
    return plan, kept


def _join_ranges(shares: Sequence[GroupShare]) -> tuple[int, int]:
    ranges = [share.plan.blocks for share in shares if share.plan.blocks is not None]
    return ranges[0][0], ranges[-1][1]


def render_probe(probe: LayerProbe) -> str:
    """Render the probe as lines of text: a row for each group, then the plan."""
    lines = [f"{'layers':<14}{'alone':>8}{'lost without':>14}"]
    for group in (probe.roles, probe.blocks):
        lines += [f"{one.label:<14}{one.alone:>8.0%}{one.lost:>14.0%}" for one in group]
    used, total = probe.layers
    lines += [
        "",
        f"plan: {probe.plan}",
        f"It keeps {probe.kept:.0%} of the effect with {used} of {total} layers.",
    ]
    return "\n".join(lines)
