"""T_point at the hand-over: early strengths on the high-noise expert, late ones on the low-noise expert."""

from fractions import Fraction

import pytest

from smra_core.lora.hand_over import OFFICIAL_SIGMA, describe_schedule, find_hand_over
from smra_core.lora.schedule import Strengths, StrengthSchedule, TPoint, choose_strength, count_early_steps

STEPS, SHIFTS, BOUNDARIES = (4, 6, 8, 20, 50), (1, 3, 5, 8), (None, "0.875", "0.9")
"""The boundaries are those of Wan's own program, for text and image to video; None is half of the steps."""
SUBJECT = Strengths(0.4, 0.8)


def exact_levels(steps, shift):
    """Levels of a run as fractions, by the definition of the shift."""
    shares = [Fraction(steps - step, steps) for step in range(steps + 1)]
    return [shift * share / (1 + (shift - 1) * share) for share in shares]


def steps_of_the_high_expert(exact, boundary):
    """The oracle: walk through the run and ask at each step which expert makes it."""
    steps, high = len(exact) - 1, 0
    for step, level in enumerate(exact[:-1]):
        if boundary is None:
            high += 2 * step + 2 <= steps
        else:
            high += level >= Fraction(boundary)
    return high


def strengths_of(t_point, part):
    """Strength at each evaluation of a sampler that sees the levels of its own part alone."""
    limit = t_point.boundary(part)
    return [choose_strength(SUBJECT, sigma, limit) for sigma in part[:-1]]


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_the_high_part_is_early_and_the_low_part_late(steps, shift, boundary):
    exact = exact_levels(steps, shift)
    levels = [float(level) for level in exact]
    cut = steps_of_the_high_expert(exact, boundary)
    assert find_hand_over(levels, boundary and float(boundary)) == cut
    t_point = TPoint(levels[cut])
    assert strengths_of(t_point, levels[: cut + 1]) == [0.4] * cut
    assert strengths_of(t_point, levels[cut:]) == [0.8] * (steps - cut)
    assert count_early_steps(t_point, levels) == cut


def test_the_official_graphs_hand_over_at_the_same_level_with_4_and_with_20_steps():
    assert OFFICIAL_SIGMA == pytest.approx(5 / 6)
    for steps in (4, 20):
        assert float(exact_levels(steps, 5)[steps // 2]) == pytest.approx(OFFICIAL_SIGMA)


def test_the_line_says_what_each_expert_gets():
    levels = [float(level) for level in exact_levels(20, 5)]
    schedule = StrengthSchedule(levels[10], at_hand_over=True)
    assert describe_schedule(schedule, TPoint(levels[10]), levels) == (
        "hand-over of the experts at step 10 of 20, sigma 0.833: early strengths on the high-noise expert, "
        "late strengths on the low-noise expert"
    )
    ordinary = StrengthSchedule(levels[10])
    assert describe_schedule(ordinary, TPoint(levels[10]), levels).startswith("switch at step 10 of 20")


@pytest.mark.parametrize("levels, idle", [([1.0, 0.0], "high"), ([0.6, 0.3, 0.0], "high")])
def test_an_expert_without_a_step_is_named(levels, idle):
    step = find_hand_over(levels, 0.875 if levels[0] < 1 else None)
    line = describe_schedule(StrengthSchedule(levels[step], at_hand_over=True), TPoint(levels[step]), levels)
    assert f"the {idle}-noise expert none" in line


def test_a_part_of_a_run_is_refused_because_its_half_is_not_the_hand_over():
    with pytest.raises(ValueError, match="run from 1.000 to 0.833 and never reach 0"):
        find_hand_over([1.0, 0.95, 0.833])
