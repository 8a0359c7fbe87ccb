"""Warm-up and cosine of the learning rate, by hand."""

import pytest

from smra_core.training.learning_rate import COSINE, learning_rate_factor
from smra_core.training.train_settings import TrainSettings


def list_factors(steps, *options):
    return [learning_rate_factor(step, steps, *options) for step in range(1, steps + 1)]


def test_without_options_the_rate_is_constant():
    assert list_factors(5) == [1.0] * 5


def test_a_warm_up_rises_in_equal_parts():
    assert list_factors(6, 4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_cosine_begins_at_1_and_ends_one_part_before_0():
    half = 0.5**0.5
    expected = [1.0, 0.5 + half / 2, 0.5, 0.5 - half / 2]  # at 0, 45, 90 and 135 degrees
    assert list_factors(4, 0, COSINE) == pytest.approx(expected)


def test_a_cosine_begins_after_the_warm_up():
    assert list_factors(4, 2, COSINE) == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_a_warm_up_that_leaves_nothing_for_the_cosine_is_refused():
    with pytest.raises(ValueError, match="warmup_steps is 5 of 5 steps"):
        TrainSettings(steps=5, warmup_steps=5, lr_schedule=COSINE)
    TrainSettings(steps=5, warmup_steps=5)


@pytest.mark.parametrize("name", ["lr_schedule", "optimizer"])
def test_an_unknown_choice_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} 'sgd' is not known; give one of"):
        TrainSettings(**{name: "sgd"})
