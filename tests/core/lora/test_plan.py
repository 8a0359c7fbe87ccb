import math

import pytest

from smra_core.lora.plan import ALL_LAYERS, MOTION, PLANS, SUBJECT, SparsePlan, Strengths, TPointSchedule
from smra_core.wan.flow_matching import sampling_sigmas
from smra_core.wan.spec import WAN_1_3B, WAN_14B, Role

SUBJECT_STRENGTHS = Strengths(0.4, 0.8)


def early_steps(schedule, sigmas):
    values = [schedule.strength(SUBJECT_STRENGTHS, sigma, sigmas) for sigma in sigmas[:-1]]
    assert values == sorted(values)  # one switch, never back
    return values.count(0.4)


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


def test_t_point_15_of_50_is_sigma_070():
    assert TPointSchedule.from_step(15, 50).sigma == pytest.approx(0.70)
    assert TPointSchedule.from_step(15, 50, shift=5).sigma == pytest.approx(0.92105, abs=1e-5)


@pytest.mark.parametrize("shift", [1, 3, 5, 8])
@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_t_point_given_as_a_step_switches_before_that_step(steps, shift):
    sigmas = sampling_sigmas(steps, shift).tolist()
    for step in range(1, steps):
        assert early_steps(TPointSchedule.from_step(step, steps, shift), sigmas) == step


def test_t_point_at_the_ends_never_or_always_switches():
    sigmas = sampling_sigmas(50).tolist()
    assert early_steps(TPointSchedule.from_step(0, 50), sigmas) == 0
    assert early_steps(TPointSchedule.from_step(50, 50), sigmas) == 50


# First late step for sigma 0.92105 as the host's `simple` scheduler gives it (measured on the real host).
@pytest.mark.parametrize(
    "shift, steps, expected", [(5, 50, 15), (5, 30, 9), (5, 20, 6), (8, 50, 20), (8, 4, 2)]
)
def test_the_switch_falls_on_the_runs_nearest_level(shift, steps, expected):
    assert early_steps(TPointSchedule(0.92105), sampling_sigmas(steps, shift).tolist()) == expected


def test_a_partial_denoise_below_t_point_is_late_throughout():
    assert TPointSchedule(0.7).boundary(sampling_sigmas(10, denoise=0.5).tolist()) == math.inf


def test_a_high_noise_part_that_ends_above_t_point_is_early_throughout():
    assert early_steps(TPointSchedule(0.5), sampling_sigmas(20)[:8].tolist()) == 7


def test_a_run_cut_in_two_has_the_pattern_of_the_whole():
    schedule, sigmas = TPointSchedule(0.92105), sampling_sigmas(20, 5.0).tolist()
    whole = [schedule.strength(SUBJECT_STRENGTHS, sigma, sigmas) for sigma in sigmas[:-1]]
    for cut in range(1, 20):
        parts = sigmas[: cut + 1], sigmas[cut:]
        split = [schedule.strength(SUBJECT_STRENGTHS, sigma, part) for part in parts for sigma in part[:-1]]
        assert split == whole


def test_steps_outside_the_run_are_refused():
    with pytest.raises(ValueError, match="step 51 of 50"):
        TPointSchedule.from_step(51, 50)
