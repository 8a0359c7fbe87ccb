import math

import pytest
import torch
import torch.nn.functional as F

from smra_core.miniature.bench.metrics import compare_tracks, measure_clip, measure_leak, measure_likeness
from smra_core.miniature.held_out_files import REFERENCES
from smra_core.miniature.world.measure import find_sprite, measure
from smra_core.miniature.world.random_clips import draw_clip, draw_views
from smra_core.miniature.world.scenes import (
    AMPLITUDE,
    HELD_OUT_MOTIONS,
    HELD_OUT_SUBJECTS,
    MOTION_WORDS,
    Scene,
    draw_scene,
    render,
)
from smra_core.miniature.world.sprite import FRAMES, SIZE, paint, paint_plain
from smra_core.wan.hashed_text import TOKENS, HashedText

GRAY = torch.tensor([0.2, 0.2, 0.2])


def test_a_still_disc_covers_pi_r_squared_and_does_not_flow():
    radius = 10.0
    painted = paint(
        "circle", torch.full((2, 2), 32.0), torch.full((2,), radius), paint_plain(GRAY + 0.5), GRAY
    )
    assert painted.mask_px[0].sum().item() == pytest.approx(math.pi * radius**2, rel=0.02)
    assert not painted.flow.any()


def test_the_painted_flow_carries_every_frame_to_the_next():
    clip = draw_clip(torch.Generator().manual_seed(4))
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    for now, then, flow, mask in zip(clip.frames, clip.frames[1:], clip.flow, clip.mask_px, strict=False):
        place = torch.stack([x, y], -1) + flow.permute(1, 2, 0)
        arrived = F.grid_sample(then[None], place[None] / SIZE * 2 - 1, align_corners=False)[0]
        inner = -F.max_pool2d(-mask[None], 5, 1, 2)[0] > 0  # edges blend with the background
        still = (then - now).abs().mean(0)[inner].mean()
        assert (arrived - now).abs().mean(0)[inner].mean() < 0.05 + 0.5 * still


@pytest.mark.parametrize("motion", [*MOTION_WORDS, *HELD_OUT_MOTIONS])
def test_every_motion_is_read_as_itself(motion):
    reading = measure(render(Scene("square", "cyan", "striped", "navy", motion)).frames)
    assert (reading.motion, reading.shape, reading.color, reading.background) == (
        motion, "square", "cyan", "navy",
    )  # fmt: skip
    assert reading.found == 1


def test_draw_scenes_are_read_as_they_were_painted():
    generator = torch.Generator().manual_seed(0)
    scenes = [draw_scene(generator) for _ in range(24)]
    readings = [measure(render(scene).frames) for scene in scenes]
    for name in ("color", "background", "motion", "shape"):
        right = sum(getattr(s, name) == getattr(r, name) for s, r in zip(scenes, readings, strict=True))
        assert right >= 23, name


def test_an_empty_clip_shows_nothing():
    reading = measure(GRAY.view(1, 3, 1, 1).expand(FRAMES, 3, SIZE, SIZE))
    assert (reading.color, reading.shape, reading.motion, reading.found) == ("none", "none", "none", 0)


def test_nothing_that_is_held_out_is_in_the_scenes_trained_on():
    generator = torch.Generator().manual_seed(0)
    scenes = [draw_scene(generator) for _ in range(300)]
    assert {scene.motion for scene in scenes} == set(MOTION_WORDS)
    assert not set(HELD_OUT_MOTIONS) & set(MOTION_WORDS)
    assert {scene.subject for scene in scenes} == {None}


def test_words_are_the_same_vectors_wherever_they_stand():
    first, second = HashedText().encode(["a red circle", "red"])
    assert first.shape == (TOKENS, 4096)
    assert torch.equal(first[1], second[0])
    assert not first[3:].any() and not torch.equal(first[1], first[2])


def test_two_views_of_a_sprite_share_its_looks_and_not_its_place():
    first, second = draw_views(torch.Generator().manual_seed(1), 2)
    assert first.frames.shape == (1, 3, SIZE, SIZE)
    assert not torch.equal(first.mask_px, second.mask_px)


@pytest.mark.parametrize("subject", HELD_OUT_SUBJECTS)
@pytest.mark.parametrize("motion", HELD_OUT_MOTIONS)
def test_the_painted_truth_gets_the_best_figures(subject, motion):
    metrics = measure_clip(render(Scene(subject=subject, motion=motion)).frames, subject, motion, "black")
    assert metrics["likeness"] > 0.95 and metrics["x"] > 0.99 and metrics["y"] > 0.99
    assert metrics["background"] == metrics["recognized"] == metrics["seen"] == 1
    assert metrics["still"] == 0 and metrics["leak"] < 0.02


def test_the_reference_clip_itself_is_all_leak_and_another_subject():
    reference = render(REFERENCES["zigzag"]).frames
    assert measure_leak(reference, "zigzag", "ball") > 0.9
    assert measure_likeness(reference, "ball") < 0.7


def test_a_straight_walk_scores_sideways_and_not_up_and_down():
    metrics = measure_clip(render(Scene(subject="ball", motion="right")).frames, "ball", "zigzag", "black")
    assert metrics["x"] > 0.99 and metrics["y"] == 0
    assert metrics["recognized"] == 0 and metrics["still"] == 0


def test_a_standing_sprite_is_still():
    metrics = measure_clip(render(Scene(subject="ball")).frames, "ball", "hook", "gray")
    assert metrics["still"] == 1 and metrics["x"] == metrics["y"] == 0 and metrics["background"] == 0


def test_compare_trackss_are_signed():
    wanted = AMPLITUDE * torch.linspace(-1, 1, FRAMES)
    assert compare_tracks(wanted / 2, wanted) == pytest.approx(1)
    assert compare_tracks(-wanted, wanted) == pytest.approx(-1)
    assert compare_tracks(wanted * 0.05, wanted) == 0


def test_find_sprite_are_the_painters():
    painted = render(Scene("circle", "yellow", "plain", "black", "left"))
    assert (find_sprite(painted.frames) - painted.mask_px).abs().mean() < 0.02
