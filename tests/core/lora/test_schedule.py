import math

import pytest

from smra_core.lora.schedule import (
    Strengths,
    StrengthSchedule,
    TPoint,
    choose_strength,
    count_early_steps,
    describe_run,
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
