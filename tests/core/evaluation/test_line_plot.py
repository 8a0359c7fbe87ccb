import pytest

from smra_core.evaluation.line_plot import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axes,
    Line,
    choose_ticks,
    draw_line_plot,
    format_tick,
    pad_range,
    to_steps,
)

RED = (255, 0, 0)
WIDTH, HEIGHT = LEFT + 200 + RIGHT, TOP + 100 + BOTTOM
AXES = Axes((WIDTH, HEIGHT), (0, 10), (-1, 1))


def pixels_of(image, color):
    return [
        (x, y) for y in range(image.height) for x in range(image.width) if image.getpixel((x, y)) == color
    ]


def test_the_corners_of_the_axes_are_where_the_margins_end():
    assert AXES.find_pixel((0, -1)) == (LEFT, TOP + 100)
    assert AXES.find_pixel((10, 1)) == (LEFT + 200, TOP)
    assert AXES.find_pixel((5, 0)) == (LEFT + 100, TOP + 50)


def test_a_level_line_lies_at_its_height():
    found = pixels_of(draw_line_plot([Line([(2, 0.5), (8, 0.5)], RED, 3)], AXES), RED)
    assert {x for x, _ in found} >= set(range(LEFT + 42, LEFT + 158))
    assert {y for _, y in found} <= set(range(TOP + 23, TOP + 28))


def test_a_later_line_is_drawn_over_an_earlier_one():
    level = [(0, 0), (10, 0)]
    plot = draw_line_plot([Line(level, (0, 0, 255), 3), Line(level, RED, 3)], AXES)
    assert pixels_of(plot, RED) and not pixels_of(plot, (0, 0, 255))


def test_a_single_point_is_a_dot():
    found = pixels_of(draw_line_plot([Line([(5, 0)], RED)], AXES), RED)
    assert found and all(abs(x - LEFT - 100) <= 3 and abs(y - TOP - 50) <= 3 for x, y in found)


def test_markers_are_dots_wider_than_the_line():
    level = [(0, 0), (5, 0), (10, 0)]
    rows = [
        {y for x, y in pixels_of(draw_line_plot([line], AXES), RED) if abs(x - LEFT - 100) <= 3}
        for line in (Line(level, RED, 1), Line(level, RED, 1, markers=True))
    ]
    assert len(rows[1]) >= len(rows[0]) + 2


def test_only_lines_with_a_label_are_in_the_legend():
    def count_above_axes(label):
        plot = draw_line_plot([Line([(0, 0), (10, 0)], RED, 3, label)], AXES)
        return sum(y < TOP for _, y in pixels_of(plot, RED))

    assert count_above_axes("") == 0 < count_above_axes("strength")


def test_a_step_line_keeps_each_value_until_the_next():
    assert to_steps([(0, 1), (3, 5), (7, 5)]) == [(0, 1), (3, 1), (3, 5), (7, 5), (7, 5)]
    assert to_steps([(0, 1)]) == [(0, 1)] and to_steps([]) == []


@pytest.mark.parametrize(
    "low, high, whole, expected",
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 50, True, [0, 10, 20, 30, 40, 50]),
        (
            -0.2,
            1.6,
            False,
            [0, 0.5, 1, 1.5],
        ),  # 1.8 / 5 is 0.36, nearer to 0.5 than to 0.2 as a ratio
        (0.03, 0.07, False, [0.03, 0.04, 0.05, 0.06, 0.07]),
        (0, 2, True, [0, 1, 2]),
        (0.5, 1.5, True, [1]),
    ],
)
def test_ticks_are_round_values_within_the_range(low, high, whole, expected):
    assert choose_ticks(low, high, whole) == pytest.approx(expected)


def test_ticks_have_the_decimals_of_their_interval():
    assert [format_tick(v, 0.2) for v in (-0.2, 0.0, 1.0)] == ["-0.2", "0", "1.0"]
    assert [format_tick(v, 10) for v in (10.0, 1500.0)] == ["10", "1500"]
    assert format_tick(0.015, 0.005) == "0.015"
    assert format_tick(1.05e-5, 5e-7) == "1.05e-5" and format_tick(3e5, 5e4) == "3e5"


def test_ranges_leave_room_and_are_never_empty():
    assert pad_range([2, 12]) == (1.5, 12.5)
    assert pad_range([1, 5], 0) == (1, 5)
    assert pad_range([4, 4]) == (2, 6) and pad_range([0]) == (-0.5, 0.5)
    assert pad_range([]) == (0, 1)
