import pytest

from smra_core.lora.plan import ALL_LAYERS, MOTION, PLANS, SUBJECT, SparsePlan
from smra_core.wan.spec import WAN_1_3B, WAN_14B, Role


def test_the_plans_hit_exactly_the_papers_modules():
    assert len(SUBJECT.select(WAN_1_3B.linear_names())) == 150
    assert len(MOTION.select(WAN_1_3B.linear_names())) == 180
    assert len(ALL_LAYERS.select(WAN_1_3B.linear_names())) == 300
    assert len(SUBJECT.select(WAN_14B.linear_names())) == 200


def test_only_ffn_0_is_in_both_plans():
    assert SUBJECT.roles & MOTION.roles == {Role.FFN_0}
    assert SUBJECT.roles | MOTION.roles == ALL_LAYERS.roles


def test_the_ablation_plans_are_the_plans_without_ffn_0():
    assert PLANS["subject-without-ffn0"].roles == {Role.Q, Role.K}
    assert PLANS["motion-without-ffn0"].roles == {Role.V, Role.O, Role.FFN_2}


def test_a_block_range_is_half_open():
    plan = SparsePlan.parse("q@10:12")
    assert plan.select(WAN_1_3B.linear_names()) == [
        "blocks.10.self_attn.q",
        "blocks.10.cross_attn.q",
        "blocks.11.self_attn.q",
        "blocks.11.cross_attn.q",
    ]


@pytest.mark.parametrize("plan", [*PLANS.values(), SparsePlan.parse("v,ffn.2@3:9")], ids=str)
def test_plans_survive_being_written_and_read(plan):
    assert SparsePlan.parse(str(plan)) == plan


@pytest.mark.parametrize("text", ["", "w", "q,", "q@5", "q@5:5", "q@a:b", "q@1:2:3", "q@-1:2"])
def test_malformed_plans_are_refused(text):
    with pytest.raises(ValueError, match="give|Give"):
        SparsePlan.parse(text)
