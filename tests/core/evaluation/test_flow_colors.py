import pytest
import torch
from PIL import Image

from smra_core.evaluation.flow_colors import (
    LEAST_SPEED,
    color_flow,
    draw_color_wheel,
    measure_fastest,
    write_flow_sheet,
)

STEP = 1 / 255


def uniform_flow(dx, dy, height=3, width=4):
    return torch.tensor([dx, dy], dtype=torch.float32).view(2, 1, 1).expand(2, height, width)


def color_of(dx, dy, fastest=1.0):
    colors = color_flow(uniform_flow(dx, dy), fastest)
    assert colors.shape == (3, 3, 4) and torch.equal(colors, colors[:, :1, :1].expand_as(colors))
    return colors[:, 0, 0].tolist()


# The wheel has 55 colors: 15 from red to yellow, 6 to green, 4 to cyan, 11 to blue, 13 to magenta, 6 to red.
@pytest.mark.parametrize(
    "dx, dy, expected",
    [
        (1, 0, (1, 0, 0)),  # color 0
        (0, 1, (1, 13.5 / 15, 0)),  # a quarter of the way round, color 13.5
        (-1, 0, (0, 1 - 2 / 11, 1)),  # half of the way, color 27: the second from cyan to blue
        (0, -1, (4.5 / 13, 0, 1)),  # three quarters, color 40.5
    ],
)
def test_directions_have_the_colors_of_the_middlebury_wheel(dx, dy, expected):
    assert color_of(dx, dy) == pytest.approx(expected, abs=2 * STEP)


def test_slower_is_paler_and_still_is_white():
    assert color_of(0, 0) == [1, 1, 1]
    assert color_of(1, 0, fastest=4) == pytest.approx((1, 0.75, 0.75), abs=STEP)
    assert color_of(2, 0, fastest=4) == pytest.approx((1, 0.5, 0.5), abs=STEP)


def test_flow_beyond_the_scale_is_clipped():
    assert color_of(40, 0, fastest=4) == color_of(4, 0, fastest=4)


def test_no_channel_wraps_around_at_full_color():
    angles = torch.linspace(0, 2 * torch.pi, 20001)
    colors = color_flow(torch.stack([angles.cos(), angles.sin()])[:, None], 1.0)
    assert colors.amin(0).max() <= STEP  # every pure color lacks one of red, green and blue


def test_flow_that_is_not_finite_is_black_and_leaves_the_rest_as_it_was():
    flow = uniform_flow(1, 0).clone()
    flow[0, 0, 0], flow[1, 1, 1] = torch.nan, torch.inf
    colors = color_flow(flow, 2.0)
    assert colors[:, 0, 0].tolist() == colors[:, 1, 1].tolist() == [0, 0, 0]
    assert colors[:, 2, 2].tolist() == color_of(1, 0, fastest=2)


def test_the_fastest_speed_is_a_quantile_of_all_finite_speeds():
    speeds = torch.zeros(1, 2, 10, 10)
    speeds[0, 0] = torch.arange(100.0).reshape(10, 10)
    assert measure_fastest([speeds]) == 98  # int(0.99 * 99) of 0 to 99
    speeds[0, 0, 9, 9] = torch.inf
    assert measure_fastest([speeds]) == 97  # int(0.99 * 98) of 0 to 98
    assert measure_fastest([speeds / 1000]) == LEAST_SPEED
    assert measure_fastest([torch.full((1, 2, 2, 2), torch.nan)]) == LEAST_SPEED


def test_the_wheel_shows_each_direction_where_it_points():
    wheel = draw_color_wheel(41)
    assert wheel.shape == (3, 41, 41)
    assert wheel[:, 20, 20].tolist() == [1, 1, 1] and wheel[:, 0, 0].tolist() == [1, 1, 1]
    assert wheel[:, 40, 20].tolist() == pytest.approx(color_of(0, 1), abs=2 * STEP)
    # To the right lies the seam of the 55 colors: just above it 1/6 of blue is left, just below it none.
    assert wheel[:, 20, 40].tolist() == pytest.approx(color_of(1, 0), abs=1 / 6 + STEP)


def test_a_sheet_has_one_scale_for_all_rows(tmp_path):
    clip = torch.zeros(3, 3, 96, 96)
    fast, slow = (
        uniform_flow(4, 0, 96, 96).expand(2, -1, -1, -1),
        uniform_flow(1, 0, 96, 96).expand(2, -1, -1, -1),
    )
    write_flow_sheet([("fast", clip, fast), ("slow", clip, slow)], tmp_path / "flow.png", pairs=[1])
    colors = set(Image.open(tmp_path / "flow.png").convert("RGB").getdata())
    reds = {color for color in colors if color[0] == 255 and color[1] == color[2] and color[1] in (0, 191)}
    assert reds == {(255, 0, 0), (255, 191, 191)}


def test_a_sheet_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_flow_sheet([], tmp_path / "flow.png")
