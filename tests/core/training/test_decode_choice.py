import logging

import pytest
import torch

from smra_core.training.decode_choice import GB, choose_decode, estimate
from smra_core.training.mora import MotionSettings
from smra_core.wan.spec import WAN_1_3B, WAN_14B

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
GIB = 2**30


@pytest.fixture
def free(monkeypatch):
    def set_free(gib):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gib * GIB, 80 * GIB))

    return set_free


@pytest.mark.parametrize("card, expected", [
    (23.5, ("windowed", False)), (14.0, ("windowed", True)), (11.5, ("tiny", False)),
])  # fmt: skip
def test_auto_takes_the_quickest_way_that_fits(free, card, expected):
    free(card)
    choice = choose_decode(MotionSettings(), WAN_1_3B, CUDA, has_tiny=True)
    assert (choice.decode, choice.recompute) == expected


@pytest.mark.parametrize("card, expected", [
    (24, ("windowed", False)), (16, ("windowed", True)), (12, ("tiny", False)),
])  # fmt: skip
def test_each_size_of_card_gets_its_way_even_if_it_is_quite_empty(free, card, expected):
    for taken in (0.0, 0.8):
        free(card - taken)
        choice = choose_decode(MotionSettings(), WAN_1_3B, CUDA, has_tiny=True)
        assert (choice.decode, choice.recompute) == expected, taken


# By python -m tests.benchmarks.motion_step, on the meta device.
@pytest.mark.parametrize("decode, recompute, counted", [
    ("windowed", False, 9.13), ("windowed", True, 6.40), ("exact", True, 14.72),
    ("exact-low-memory", False, 6.24), ("tiny", False, 4.15),
])  # fmt: skip
def test_the_estimate_is_near_what_was_counted(decode, recompute, counted):
    told = estimate(MotionSettings(), decode, recompute, WAN_1_3B).bytes / GB
    assert told == pytest.approx(counted, rel=0.15)


def test_what_is_asked_for_is_taken_and_recomputes_where_memory_is_short(free):
    free(40)
    assert choose_decode(MotionSettings(decode="exact"), WAN_1_3B, CUDA, True).recompute is False
    free(23)
    choice = choose_decode(MotionSettings(decode="exact"), WAN_1_3B, CUDA, True)
    assert choice.decode == "exact" and choice.recompute


def test_without_a_tiny_decoder_the_least_of_the_others_is_taken_with_a_warning(free, caplog):
    free(8)
    with caplog.at_level(logging.INFO, "smrabooth"):
        choice = choose_decode(MotionSettings(), WAN_1_3B, CUDA, has_tiny=False)
    assert choice.decode == "windowed" and choice.recompute
    assert "may run out of memory" in caplog.text and "lighttaew2_1" in caplog.text
    assert "decode: windowed with recompute, about" in caplog.text and "of 8.6 GB free" in caplog.text


def test_memory_that_somebody_else_knows_of_counts_instead_of_the_devices(free):
    free(40)
    assert choose_decode(MotionSettings(), WAN_1_3B, CUDA, True, free=11.5 * GIB).decode == "tiny"


def test_a_tiny_decode_without_its_file_is_refused():
    with pytest.raises(ValueError, match="decode 'tiny' needs a tiny decoder's file"):
        choose_decode(MotionSettings(decode="tiny"), WAN_1_3B, CPU, has_tiny=False)


def test_on_a_cpu_the_windowed_way_is_taken():
    assert choose_decode(MotionSettings(), WAN_1_3B, CPU, has_tiny=True).decode == "windowed"


def test_more_frames_larger_windows_and_larger_models_need_more():
    def need(decode="windowed", spec=WAN_1_3B, **changes):
        return estimate(MotionSettings(**changes), decode, False, spec).bytes

    assert need(window=4) > need() > need(window=2)
    assert need("exact", frames=81) > need("exact") > need("exact-low-memory") > need("tiny")
    assert need("tiny", spec=WAN_14B) > need("tiny") > 2 * GB
