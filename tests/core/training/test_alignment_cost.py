import pytest

from smra_core.training.alignment_cost import alignment_flops
from smra_core.training.cost import step_flops
from smra_core.training.mora import MotionSettings
from smra_core.wan.spec import WAN_1_3B

TF = 1e12
TOKENS = 13 * 20 * 36


def step(decode, recompute=False):
    return step_flops(WAN_1_3B, TOKENS) + alignment_flops(MotionSettings(), decode, recompute)


@pytest.mark.parametrize(
    ("decode", "recompute", "counted"),
    [
        ("windowed", False, 206.1), ("windowed", True, 217.7), ("exact", True, 345.6),
        ("exact-low-memory", False, 388.2), ("tiny", False, 162.7),
    ],
)  # fmt: skip
def test_a_step_takes_what_was_counted_on_meta_tensors(decode, recompute, counted):
    assert step(decode, recompute) / TF == pytest.approx(counted, rel=0.03)


def test_the_ways_to_decode_are_in_their_order():
    ways = [step("tiny"), step("windowed"), step("windowed", True), step("exact"), step("exact", True)]
    assert sorted(ways) == ways and ways[-1] < step("exact-low-memory")


def test_a_window_longer_than_the_clip_costs_no_more_than_the_clip():
    long = MotionSettings(window=40, context=4)
    assert alignment_flops(long, "windowed", False) == alignment_flops(MotionSettings(), "exact", False)


def test_it_grows_with_pixels_and_is_nothing_without_the_loss():
    exact = alignment_flops(MotionSettings(), "exact", False)
    assert alignment_flops(MotionSettings(width=288), "exact", False) == exact / 2
    assert alignment_flops(MotionSettings(mora_weight=0.0), "exact", False) == 0
