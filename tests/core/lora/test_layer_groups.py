"""Groups of a LoRA's layers."""

import pytest
import torch

from smra_core.lora.adapter import init_lora
from smra_core.lora.layer_groups import keep_group, leave_out, list_block_ranges, list_roles
from smra_core.lora.plan import SUBJECT, SparsePlan
from smra_core.wan.spec import Role, WanSpec

BLOCKS = 7
SPEC = WanSpec("tiny", BLOCKS, dim=4, ffn=6, heads=1)


def make_lora(plan):
    return init_lora(SPEC, plan, 2, torch.Generator().manual_seed(0))


def test_there_is_a_group_for_each_role_of_the_lora_alone():
    assert [plan.roles for plan in list_roles(make_lora(SUBJECT))] == [{Role.Q}, {Role.K}, {Role.FFN_0}]


def test_ranges_of_blocks_cover_the_loras_blocks_once_and_differ_by_one_block_at_most():
    ranges = [plan.blocks for plan in list_block_ranges(make_lora(SUBJECT), 3)]
    assert ranges == [(0, 2), (2, 4), (4, 7)]


def test_a_lora_of_few_blocks_has_a_range_for_each():
    lora = make_lora(SparsePlan(SUBJECT.roles, (3, 5)))
    assert [plan.blocks for plan in list_block_ranges(lora, 9)] == [(3, 4), (4, 5)]


def test_a_range_without_a_layer_is_left_out():
    lora = make_lora(SUBJECT)
    ends = {name: pair for name, pair in lora.items() if name.split(".")[1] in "06"}
    assert [plan.blocks for plan in list_block_ranges(ends, BLOCKS)] == [(0, 1), (6, 7)]


def test_no_ranges_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        list_block_ranges(make_lora(SUBJECT), 0)


def test_a_group_and_the_rest_are_the_whole_lora():
    lora, plan = make_lora(SUBJECT), SparsePlan(frozenset({Role.Q}), (0, 3))
    kept, rest = keep_group(lora, plan), leave_out(lora, plan)
    assert len(kept) == 6 and kept | rest == lora and not kept.keys() & rest.keys()
