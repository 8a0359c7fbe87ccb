import math

import pytest

from smra_core.lora.schedule import (
    Strengths,
    StrengthSchedule,
    TPoint,
    choose_strength,
    count_early_steps,
    describe_run,
    find_early_steps,
)
from smra_core.wan.flow_matching import sampling_sigmas

SUBJECT_STRENGTHS = Strengths(0.4, 0.8)


def strengths_over(t_point, sigmas):
    boundary = t_point.boundary(sigmas)
    return [choose_strength(SUBJECT_STRENGTHS, sigma, boundary) for sigma in sigmas[:-1]]


def early_steps(schedule, sigmas):
    values = strengths_over(schedule, sigmas)
    assert values == sorted(values)  # one switch, never back
    return values.count(0.4)


T_POINT = TPoint(0.7)
TENTHS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def test_the_papers_run_switches_at_step_15_of_50():
    levels = sampling_sigmas(50).tolist()
    assert count_early_steps(T_POINT, levels) == 15
    assert describe_run(T_POINT, levels) == "switch at step 15 of 50, sigma 0.700 (T_point at sigma 0.70)"


def test_a_part_of_a_run_on_one_side_says_why_it_does_not_switch():
    assert count_early_steps(T_POINT, TENTHS[:4]) == 3
    assert count_early_steps(T_POINT, [1.0, 0.95, 0.875]) == 2
    assert "early strengths throughout: the end at sigma 0.875 lies above" in describe_run(
        T_POINT, [1.0, 0.95, 0.875]
    )
    assert count_early_steps(T_POINT, [0.6, 0.3, 0.0]) == 0
    assert "late strengths throughout: the start at sigma 0.600" in describe_run(T_POINT, [0.6, 0.3, 0.0])


def test_a_share_is_read_off_the_samplers_own_table():
    schedule = StrengthSchedule(0.3, as_share=True)
    assert schedule.resolve(lambda share: 1 - share).sigma == pytest.approx(0.7)
    assert schedule.resolve(lambda share: 8 * (1 - share) / (1 + 7 * (1 - share))).sigma == pytest.approx(
        5.6 / 5.9
    )
    assert StrengthSchedule(0.3).resolve(lambda share: 1 - share).sigma == 0.3


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_t_point_outside_the_run_is_refused(value):
    with pytest.raises(ValueError, match="from 0 to 1"):
        StrengthSchedule(value)


def test_t_point_15_of_50_is_sigma_070():
    assert TPoint.from_step(15, 50).sigma == pytest.approx(0.70)
    assert TPoint.from_step(15, 50, shift=5).sigma == pytest.approx(0.92105, abs=1e-5)


@pytest.mark.parametrize("shift", [1, 3, 5, 8])
@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_t_point_given_as_a_step_switches_before_that_step(steps, shift):
    sigmas = sampling_sigmas(steps, shift).tolist()
    for step in range(1, steps):
        assert early_steps(TPoint.from_step(step, steps, shift), sigmas) == step


def test_t_point_at_the_ends_never_or_always_switches():
    sigmas = sampling_sigmas(50).tolist()
    assert early_steps(TPoint.from_step(0, 50), sigmas) == 0
    assert early_steps(TPoint.from_step(50, 50), sigmas) == 50


# First late step for sigma 0.92105 as the host's `simple` scheduler gives it (measured on the real host).
@pytest.mark.parametrize(
    "shift, steps, expected", [(5, 50, 15), (5, 30, 9), (5, 20, 6), (8, 50, 20), (8, 4, 2)]
)
def test_the_switch_falls_on_the_runs_nearest_level(shift, steps, expected):
    assert early_steps(TPoint(0.92105), sampling_sigmas(steps, shift).tolist()) == expected


def test_a_partial_denoise_below_t_point_is_late_throughout():
    assert TPoint(0.7).boundary(sampling_sigmas(10, denoise=0.5).tolist()) == math.inf


def test_a_high_noise_part_that_ends_above_t_point_is_early_throughout():
    assert early_steps(TPoint(0.5), sampling_sigmas(20)[:8].tolist()) == 7


def test_a_run_cut_in_two_has_the_pattern_of_the_whole():
    schedule, sigmas = TPoint(0.92105), sampling_sigmas(20, 5.0).tolist()
    whole = strengths_over(schedule, sigmas)
    for cut in range(1, 20):
        parts = sigmas[: cut + 1], sigmas[cut:]
        split = [strength for part in parts for strength in strengths_over(schedule, part)]
        assert split == whole


def test_steps_outside_the_run_are_refused():
    with pytest.raises(ValueError, match="step 51 of 50"):
        TPoint.from_step(51, 50)
    with pytest.raises(ValueError, match="a run of at least 1 step, as 15/50"):
        TPoint.from_step(0, 0)
    with pytest.raises(ValueError, match="shift 0; give a finite shift above 0"):
        TPoint.from_step(15, 50, 0)


@pytest.mark.parametrize("sigma", [15, -0.1, math.nan, math.inf])
def test_a_t_point_that_is_no_noise_level_is_refused(sigma):
    with pytest.raises(ValueError, match="give a sigma from 0 to 1, or a step of a run as 15/50"):
        TPoint(sigma)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_strengths_that_are_no_numbers_are_refused(value):
    for strengths in ((value, 0.8), (0.4, value)):
        with pytest.raises(ValueError, match="give two finite numbers"):
            Strengths(*strengths)


def test_a_table_that_starts_above_one_gives_a_t_point_within_the_run():
    schedule = StrengthSchedule(0.0, as_share=True)
    assert schedule.resolve(lambda share: 999999999.9).sigma == 1.0


FALLING = [1.0, 0.9825, 0.96, 0.9302, 0.8889, 0.8276, 0.7273, 0.5333, 0.0]
"""Levels of 8 steps at shift 8; for T_point 0.70 the nearest is 0.7273."""
LATE_LEVELS = {0.7273, 0.5333, 0.0}
ORDERS = {
    "falling": FALLING,
    "falling, padded with zeros": [*FALLING, 0.0, 0.0],
    "falling, with repeated levels": sorted(FALLING * 2, reverse=True),
    "resampling": [0.0, *FALLING],
    "resampling, cut": [0.0, *FALLING[2:]],
    "rising": FALLING[::-1],
    "rising, a part": FALLING[::-1][1:7],
    "rising, padded with a zero": [*FALLING[::-1], 0.0],
    "rising and falling": [*FALLING[::-1], *FALLING[1:]],
    "falling twice": [*FALLING, *FALLING],
    "shuffled": [FALLING[(5 * index) % 9] for index in range(9)],
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_early_steps_are_those_above_the_boundary_in_any_order(order):
    levels = ORDERS[order]
    is_early = [level not in LATE_LEVELS for level in levels[:-1]]
    assert find_early_steps(T_POINT, levels) == is_early
    assert count_early_steps(T_POINT, levels) == sum(is_early)
    assert T_POINT.boundary(levels) == T_POINT.boundary(sorted(levels, reverse=True))


@pytest.mark.parametrize(
    "order, told",
    [
        ("falling", "switch at step 6 of 8, sigma 0.727 (T_point at sigma 0.70)"),
        ("falling, padded with zeros", "switch at step 6 of 10, sigma 0.727 (T_point at sigma 0.70)"),
        ("resampling", "early strengths in steps 2 to 7 of 9, counted from 1"),
        ("rising", "early strengths in steps 4 to 8 of 8, counted from 1"),
        ("falling twice", "early strengths in steps 1 to 6, 10 to 15 of 17, counted from 1"),
    ],
)
def test_a_run_in_another_order_says_which_steps_are_early(order, told):
    assert describe_run(T_POINT, ORDERS[order]).startswith(told)


def test_a_run_in_another_order_on_one_side_names_its_highest_or_lowest_level():
    assert "late strengths throughout: the highest level at sigma 0.600" in describe_run(
        T_POINT, [0.0, 0.3, 0.6]
    )
    assert "early strengths throughout: the lowest level at sigma 0.800 lies above" in describe_run(
        T_POINT, [0.8, 0.9, 1.0]
    )


def test_a_part_that_ends_at_t_point_is_not_said_to_end_above_it():
    assert "the end at sigma 0.700 is the level nearest to T_point" in describe_run(T_POINT, TENTHS[:4])
