import pytest

from smra_core.evaluation.schedule_plot import (
    MOTION_COLOR,
    SIZE,
    SUBJECT_COLOR,
    SWITCH_COLOR,
    choose_axes,
    draw_schedule,
)
from smra_core.lora.schedule import Strengths, StrengthSchedule, TPoint

T_POINT = TPoint(0.7)
TENTHS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def rgb_of(color):
    return tuple(bytes.fromhex(color[1:]))


def mean_row(image, axes, color, step):
    """Mean of the rows in which a color is seen over a step, below the legend."""
    x = round(axes.find_pixel((step, 0))[0])
    top, bottom = (round(axes.find_pixel((0, bound))[1]) for bound in reversed(axes.y))
    rows = [y for y in range(top, bottom + 1) if image.getpixel((x, y)) == rgb_of(color)]
    return sum(rows) / len(rows)


def test_the_picture_steps_up_at_the_switch():
    schedule = StrengthSchedule(0.7, subject=Strengths(0.2, 0.6))
    image, axes = draw_schedule(schedule, T_POINT, TENTHS), choose_axes(schedule, 10)
    assert image.size == SIZE
    for step, strength in ((1.5, 0.2), (4.5, 0.6)):
        row = axes.find_pixel((step, strength))[1]
        assert mean_row(image, axes, SUBJECT_COLOR, step) == pytest.approx(row, abs=2)


def test_the_motion_strength_lies_at_its_height_through_the_whole_run():
    schedule = StrengthSchedule(0.7, subject=Strengths(0.2, 0.6), motion=Strengths.from_value(0.8))
    image, axes = draw_schedule(schedule, T_POINT, TENTHS), choose_axes(schedule, 10)
    for step in (1.5, 8.5):
        row = axes.find_pixel((step, 0.8))[1]
        assert mean_row(image, axes, MOTION_COLOR, step) == pytest.approx(row, abs=2)


def test_the_switch_is_a_vertical_line_at_its_step():
    schedule = StrengthSchedule(0.7, subject=Strengths(0.2, 0.6))
    image, axes = draw_schedule(schedule, T_POINT, TENTHS), choose_axes(schedule, 10)
    height = round(axes.find_pixel((0, 0.8))[1])  # above the subject's strengths
    columns = [x for x in range(SIZE[0]) if image.getpixel((x, height)) == rgb_of(SWITCH_COLOR)]
    assert columns and sum(columns) / len(columns) == pytest.approx(axes.find_pixel((3, 0))[0], abs=1.5)


def test_a_run_that_rises_is_late_at_its_left_and_early_at_its_right():
    schedule = StrengthSchedule(0.7, subject=Strengths(0.2, 0.6))
    image, axes = draw_schedule(schedule, T_POINT, TENTHS[::-1]), choose_axes(schedule, 10)
    for step, strength in ((4.5, 0.6), (8.5, 0.2)):
        row = axes.find_pixel((step, strength))[1]
        assert mean_row(image, axes, SUBJECT_COLOR, step) == pytest.approx(row, abs=2)


def test_a_run_that_is_resampled_has_a_line_at_each_switch():
    schedule = StrengthSchedule(0.7, subject=Strengths(0.2, 0.6))
    image, axes = draw_schedule(schedule, T_POINT, [0.0, *TENTHS]), choose_axes(schedule, 11)
    height = round(axes.find_pixel((0, 0.75))[1])
    for step in (1, 4):
        assert image.getpixel((round(axes.find_pixel((step, 0))[0]), height)) == rgb_of(SWITCH_COLOR)


def test_the_axis_holds_zero_one_and_every_strength():
    subject = Strengths(-0.5, 1.6)
    assert choose_axes(StrengthSchedule(0.7, subject=subject), 10).y == (-0.5, 1.6)
    assert choose_axes(StrengthSchedule(0.7, subject=Strengths(0.2, 0.6)), 10).y == (0, 1)


def test_the_axis_names_the_experts_where_they_hand_over():
    assert choose_axes(StrengthSchedule(0.7), 10).x_label == "step"
    label = choose_axes(StrengthSchedule(0.7, at_hand_over=True), 10).x_label
    assert "high-noise expert, then low-noise expert" in label
