"""Leak and stillness, on painted videos of which it is known how much they leak and move."""

from dataclasses import replace

import pytest
import torch

from smra_core.encoders.dinov2 import load_dinov2
from smra_core.encoders.sea_raft import load_sea_raft
from smra_core.evaluation.interval import Interval, estimate_ratio
from smra_core.evaluation.leak_meter import Leak, LeakMeter, measure_share
from smra_core.evaluation.stillness_meter import Stillness, measure_stillness
from smra_core.miniature.held_out_files import REFERENCES
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from smra_core.miniature.world.scenes import Scene, render

FRAMES, MOTION = 5, "zigzag"
CLIP = REFERENCES[MOTION]
PROMPTED = [
    Scene("circle", "green", "plain", "gray", "left", (30.0, 34.0)),
    Scene("triangle", "yellow", "striped", "maroon", "up", (34.0, 30.0)),
    Scene("circle", "blue", "striped", "black", "right"),
]
"""What three seeds of the base model show."""


class NoFlow(torch.nn.Linear):
    """Net that sees no motion."""

    def __init__(self):
        super().__init__(1, 1)

    def compute_pair_flows(self, frames):
        return torch.zeros_like(frames[1:, :2])


def paint(scenes):
    return [render(scene, FRAMES).frames[None] for scene in scenes]


@pytest.fixture(scope="module")
def sea_raft():
    return load_sea_raft(SEA_RAFT_FILE)


@pytest.fixture(scope="module")
def meter(sea_raft):
    return LeakMeter(load_dinov2(DINOV2_FILE), sea_raft, render(CLIP, FRAMES).frames)


def test_an_interval_by_hand():
    assert estimate_ratio([2.0, 2.0]) == (2, 2, 2)
    assert estimate_ratio([1.0, 3.0], [2.0, 2.0]) == (1, 0.5, 1.5)
    assert estimate_ratio([0.0, 0.0, 3.0]).low == 0
    with pytest.raises(ValueError, match="at least 2 seeds"):
        estimate_ratio([1.0])


def test_an_interval_is_that_of_the_mean_and_narrows_with_more_seeds():
    few, many = (estimate_ratio([0.0, 1.0] * count) for count in (2, 50))
    # The mean of 100 throws of a coin has a standard deviation of 0.05.
    assert many.high - many.low == pytest.approx(4 * 0.05, abs=0.04) and few.low == 0 and few.high == 1


def test_the_share_of_the_way_by_hand():
    base, clip = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert measure_share(base, base, clip) == 0 and measure_share(clip, base, clip) == 1
    assert measure_share(torch.tensor([0.8, 0.6]), base, clip) == pytest.approx(0.6)
    assert measure_share(None, base, clip).isnan()
    assert measure_share(clip, clip, clip) == 0  # the base has no way to go


def test_the_clips_own_look_is_a_full_leak_and_the_bases_is_none(meter):
    bases = paint(PROMPTED)
    none = meter.measure(bases, bases)
    assert none.actor.mean == none.background.mean == none.overall.mean == 0
    full = meter.measure(paint([CLIP] * 3), bases)
    assert full.actor.mean == pytest.approx(1, abs=1e-5)
    assert full.background.mean == pytest.approx(1, abs=1e-5)
    assert "It leaks" in full.describe() and "does not leak" in none.describe()


def test_a_leaking_video_ranks_worse_than_one_that_takes_the_motion_alone(meter):
    bases = paint(PROMPTED)
    clean = meter.measure(paint([replace(scene, motion=MOTION) for scene in PROMPTED]), bases)
    leaky = meter.measure(paint([replace(s, color=CLIP.color, shape=CLIP.shape, texture=CLIP.texture,
                                         motion=MOTION) for s in PROMPTED]), bases)  # fmt: skip
    behind = [replace(scene, background=CLIP.background, motion=MOTION) for scene in PROMPTED]
    copied = meter.measure(paint(behind), bases)
    assert leaky.actor.mean > clean.actor.mean + 0.2
    assert copied.background.mean > clean.background.mean + 0.2
    assert leaky.worst.mean > clean.worst.mean and copied.worst.mean > clean.worst.mean
    assert leaky.overall.mean == pytest.approx((leaky.actor.mean + leaky.background.mean) / 2)


def test_the_verdict_is_on_the_larger_of_the_two_leaks():
    clean, leaking = Interval(0.0, 0.0, 0.05), Interval(0.6, 0.5, 0.7)
    assert "background goes 60 %" in Leak(clean, leaking, leaking).describe()
    assert "actor goes 60 %" in Leak(leaking, clean, leaking).describe()


def test_a_video_that_stands_still_is_found_and_one_that_moves_is_not(sea_raft):
    bases = paint(PROMPTED)
    assert measure_stillness(sea_raft, bases, bases).motion.mean == pytest.approx(1)
    stilled = measure_stillness(sea_raft, paint([replace(s, motion="static") for s in PROMPTED]), bases)
    assert stilled.motion.high < 0.3 and "It stills" in stilled.describe()


def test_a_base_that_stands_still_leaves_nothing_to_compare():
    bases = paint(PROMPTED)
    with pytest.raises(ValueError, match="stand still"):
        measure_stillness(NoFlow(), bases, bases)


def test_too_few_seeds_give_no_verdict():
    wide = Interval(0.5, 0.0, 1.0)
    barely = Interval(0.05, 0.0, 0.2)
    assert "cannot tell" in Leak(barely, None, barely).describe()
    assert "cannot tell" in Leak(wide, None, wide).describe() and "cannot tell" in Stillness(wide).describe()
    assert "does not still" in Stillness(Interval(0.9, 0.8, 1.0)).describe()
