"""The part of a strength that is merged into the weights, and the rest that each evaluation adds."""

import pytest
import torch
from random_wan import sample
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from torch.utils._python_dispatch import TorchDispatchMode

SCHEDULE = StrengthSchedule(0.7)
SWITCH, STEPS = 3, 10
"""The levels are 1, 0.9, …, so that the steps from the fourth on are late."""


class AddedProducts(TorchDispatchMode):
    """Counts the products that are added in place, as a LoRA is while sampling."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.addmm_.default
        return func(*args, **(kwargs or {}))


def applied(model, factors, early, late, constant="auto"):
    lora = {name: LoraPair(a, b) for name, (a, b) in factors.items()}
    return apply_loras(model, [ScheduledLora(lora, Strengths(early, late))], SCHEDULE, constant)


def count_products(model, first, last):
    sample(model, steps=STEPS, cfg=1.0, start_step=first, last_step=last)  # the factors are merged by now
    with AddedProducts() as added:
        sample(model, steps=STEPS, cfg=1.0, start_step=first, last_step=last)
    return added.count


@pytest.mark.parametrize(("constant", "late_products"), [("auto", 0), ("on the fly", 7)])
def test_after_t_point_a_merged_lora_adds_nothing(model, loras, constant, late_products):
    result = applied(model, loras[0], 0.4, 0.8, constant)
    assert result.merged == ((0.8,) if constant == "auto" else (0.0,))
    assert count_products(result.model, 0, SWITCH) == SWITCH * len(loras[0])
    assert count_products(result.model, SWITCH, STEPS) == late_products * len(loras[0])


def test_before_t_point_a_lora_that_begins_at_0_is_not_there_at_all(model, loras):
    result = applied(model, loras[0], 0.0, 0.8)
    assert result.merged == (0.0,)
    part = {"steps": STEPS, "start_step": 0, "last_step": SWITCH}
    assert torch.equal(sample(result.model, **part), sample(model, **part))
    assert not torch.equal(sample(result.model, steps=STEPS), sample(model, steps=STEPS))
