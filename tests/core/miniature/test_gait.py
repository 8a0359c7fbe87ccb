from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from smra_core.miniature.recipe.gates import GaitCheck, check_gait
from smra_core.miniature.world.figure import PARTS, find_nearest, measure_parts
from smra_core.miniature.world.gait import read_gait
from smra_core.miniature.world.measure import measure
from smra_core.miniature.world.scenes import (
    FIGURES,
    MOTION_WORDS,
    WALKING,
    Scene,
    compute_swing,
    render,
    vary,
)
from smra_core.miniature.world.sprite import FRAMES, SIZE

PROGRESS = torch.linspace(0, 1, FRAMES)
WALK = Scene(subject="robot", motion=WALKING, background="gray")


@pytest.mark.parametrize("figure", FIGURES)
def test_a_walking_figure_is_read_as_it_was_painted(figure):
    scene = vary(replace(WALK, subject=figure), torch.Generator().manual_seed(3))
    gait = read_gait(render(scene).frames, figure)
    assert (gait.swing - compute_swing(WALKING, PROGRESS)).abs().max() < 0.2
    assert gait.amplitude == pytest.approx(1, abs=0.1) and abs(gait.lag) < 5 and gait.is_right


def test_a_figure_that_glides_has_no_gait():
    gait = read_gait(render(replace(WALK, motion="right")).frames, "robot")
    assert gait.amplitude < 0.05 and not gait.is_right


def test_a_clip_that_is_shown_backwards_lags_by_half_a_turn():
    gait = read_gait(render(WALK).frames.flip(0), "robot")
    assert abs(gait.lag) == pytest.approx(180, abs=5) and not gait.is_right


def test_the_body_of_a_walking_figure_moves_to_the_right():
    assert WALKING not in MOTION_WORDS
    assert measure(render(WALK).frames).motion == "right"


def test_the_painted_flow_carries_a_walking_figure_to_its_next_frame():
    painted = render(WALK)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    place = torch.stack([x, y], -1) + painted.flow.permute(0, 2, 3, 1)
    arrived = F.grid_sample(painted.frames[1:], place / SIZE * 2 - 1, align_corners=False)
    inner = -F.max_pool2d(-painted.mask_px[:-1], 3, 1, 1) > 0  # edges blend with the background
    inner[:, : SIZE // 2 + 8] = False  # the legs alone
    gliding = render(replace(WALK, motion="right")).flow
    place = torch.stack([x, y], -1) + gliding.permute(0, 2, 3, 1)
    glided = F.grid_sample(painted.frames[1:], place / SIZE * 2 - 1, align_corners=False)
    apart = compute_swing(WALKING, PROGRESS)[1:] <= 0  # where the legs hide nothing of each other
    apart &= compute_swing(WALKING, PROGRESS)[:-1] <= 0
    error = ((arrived - painted.frames[:-1]).abs().mean(1) * inner)[apart].sum()
    assert error < 0.6 * ((glided - painted.frames[:-1]).abs().mean(1) * inner)[apart].sum()


def test_the_left_leg_is_in_front_where_the_legs_cross():
    x, y = torch.zeros(1), torch.full((1,), 1.0)  # between the feet, which have passed each other
    nearest = find_nearest(x, y, torch.ones(1))[0]
    distances = measure_parts(x, y, torch.ones(1))[:, 0]
    assert (distances[2:] < 0).all()
    assert list(PARTS)[int(nearest.argmax())] == "left leg"


def test_the_vae_keeps_the_gait_of_a_figure():
    assert check_gait(1) == GaitCheck(right=1, clips=1)


def test_the_gate_is_missed_below_nine_of_ten():
    assert str(GaitCheck(35, 40)).endswith("MISSED") and str(GaitCheck(36, 40)).endswith("ok")
