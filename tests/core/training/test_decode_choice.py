import logging
from pathlib import Path

import pytest
import torch

from smra_core.training.decode_choice import choose_decode, choose_memory_advice
from smra_core.training.decode_memory import estimate
from smra_core.training.memory import DitMemory
from smra_core.training.motion_settings import MotionSettings
from smra_core.wan.spec import WAN_1_3B, WAN_5B, WAN_14B

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
GB, GIB = 1e9, 2**30
TINY = Path("lighttaew2_1.safetensors")


@pytest.fixture
def free(monkeypatch):
    def set_free(gib, card=None):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gib * GIB, (card or gib) * GIB))

    return set_free


@pytest.mark.parametrize("card, expected", [
    (34.0, ("exact", False)), (23.5, ("exact", True)), (14.0, ("exact-low-memory", False)),
    (11.5, ("tiny", False)),
])  # fmt: skip
def test_auto_decodes_the_whole_clip_in_the_quickest_way_that_fits(free, card, expected):
    free(card)
    choice = choose_decode(MotionSettings(), WAN_1_3B, CUDA, tiny_decoder=TINY)
    assert (choice.decode, choice.recompute) == expected


@pytest.mark.parametrize("card, expected", [
    (24, ("exact", True)), (16, ("exact-low-memory", False)), (12, ("tiny", False)),
])  # fmt: skip
def test_each_size_of_card_gets_its_way_whatever_another_program_holds(free, card, expected):
    for taken in (0.0, 0.8, 0.5 * card):
        free(card - taken, card)
        choice = choose_decode(MotionSettings(), WAN_1_3B, CUDA, tiny_decoder=TINY)
        assert (choice.decode, choice.recompute) == expected, taken


# By python -m tests.benchmarks.motion_step, on the meta device; for TI2V-5B with --model Wan2.2-TI2V-5B.
@pytest.mark.parametrize("decode, recompute, counted, counted_5b", [
    ("windowed", False, 9.13, 6.61), ("windowed", True, 6.40, 4.98), ("exact", True, 14.72, 11.52),
    ("exact-low-memory", False, 6.24, 4.66), ("tiny", False, 4.15, 2.04),
])  # fmt: skip
def test_the_estimate_is_near_what_was_counted(decode, recompute, counted, counted_5b):
    for spec, peak in ((WAN_1_3B, counted), (WAN_5B, counted_5b)):
        told = estimate(MotionSettings(), decode, recompute, spec).bytes / GB
        assert told == pytest.approx(peak, rel=0.15), spec.name


def test_what_is_asked_for_is_taken_and_recomputes_where_memory_is_short(free):
    free(40)
    assert choose_decode(MotionSettings(decode="exact"), WAN_1_3B, CUDA, TINY).recompute is False
    free(23)
    choice = choose_decode(MotionSettings(decode="exact"), WAN_1_3B, CUDA, TINY)
    assert choice.decode == "exact" and choice.recompute


def test_without_a_tiny_decoder_the_least_of_the_others_is_taken_with_a_warning(free, caplog):
    free(7.2)
    with caplog.at_level(logging.INFO, "smrabooth"):
        choice = choose_decode(MotionSettings(), WAN_1_3B, CUDA, tiny_decoder=None)
    assert choice.decode == "exact-low-memory"
    assert "may run out of memory: it needs" in caplog.text
    assert (
        "the device has 7.2 GiB. What fits: decode tiny (file lighttaew2_1) (5.4 GiB), or width 368 and"
        in caplog.text
    )
    assert "decode: exact-low-memory, about" in caplog.text and "of 7.2 GiB" in caplog.text


def test_memory_that_another_program_holds_is_told(free, caplog):
    free(13, card=35)
    choice = choose_decode(MotionSettings(), WAN_1_3B, CUDA, TINY)
    assert (choice.decode, choice.recompute) == ("exact", False)
    assert "Only 13.0 GiB are free now" in caplog.text and "Close what else uses the card" in caplog.text


def test_memory_that_somebody_else_knows_of_counts_instead_of_the_devices(free):
    free(40)
    assert choose_decode(MotionSettings(), WAN_1_3B, CUDA, TINY, memory=11.5 * GIB).decode == "tiny"


def test_weights_that_take_less_leave_room_for_the_full_decoder(free):
    free(24)
    half, quarter = (DitMemory(round(share * 28.6e9)) for share in (0.5, 0.25))
    assert choose_decode(MotionSettings(), WAN_14B, CUDA, TINY, weights=half).decode == "tiny"
    assert choose_decode(MotionSettings(), WAN_14B, CUDA, TINY, weights=quarter).decode == "exact-low-memory"


def test_where_blocks_can_wait_in_host_memory_they_make_room_for_the_full_decoder(free):
    free(24)
    stay, can_wait = DitMemory(28_600_000_000), DitMemory(28_600_000_000, can_wait=True)
    with pytest.raises(ValueError, match="does not fit: it needs 37"):
        choose_decode(MotionSettings(), WAN_14B, CUDA, TINY, weights=stay)
    assert choose_decode(MotionSettings(), WAN_14B, CUDA, TINY, weights=can_wait).decode == "exact-low-memory"
    free(11.5)  # the model of 1.3B fits with all of its blocks
    small = DitMemory(2_840_000_000, can_wait=True)
    assert choose_decode(MotionSettings(), WAN_1_3B, CUDA, TINY, weights=small).decode == "tiny"


def test_a_tiny_decode_without_its_file_is_refused():
    with pytest.raises(ValueError, match="decode 'tiny' needs a tiny decoder's file"):
        choose_decode(MotionSettings(decode="tiny"), WAN_1_3B, CPU, tiny_decoder=None)
    with pytest.raises(ValueError, match="Give lighttaew2_2 or taew2_2"):
        choose_decode(MotionSettings(decode="tiny"), WAN_5B, CPU, tiny_decoder=None)


def test_on_a_cpu_the_whole_clip_is_decoded():
    assert choose_decode(MotionSettings(), WAN_1_3B, CPU, tiny_decoder=TINY).decode == "exact"


def test_windows_that_are_asked_for_recompute_where_memory_is_short(free):
    for card, recompute in ((23.5, False), (14.0, True)):
        free(card)
        choice = choose_decode(MotionSettings(decode="windowed"), WAN_1_3B, CUDA, TINY)
        assert (choice.decode, choice.recompute) == ("windowed", recompute)


def test_more_frames_larger_windows_and_larger_models_need_more():
    def need(decode="windowed", spec=WAN_1_3B, **changes):
        return estimate(MotionSettings(**changes), decode, False, spec).bytes

    assert need(window=4) > need() > need(window=2)
    assert need("exact", frames=81) > need("exact") > need("exact-low-memory") > need("tiny")
    assert need("tiny", spec=WAN_14B) > need("tiny") > 2 * GB


def test_the_choice_holds_the_tiny_decoders_file_where_it_decodes(free):
    free(11.5)
    assert choose_decode(MotionSettings(), WAN_1_3B, CUDA, TINY).tiny_file == TINY
    free(23.5)
    assert choose_decode(MotionSettings(), WAN_1_3B, CUDA, TINY).tiny_file is None


@pytest.mark.parametrize("decode", ["auto", "tiny"])
def test_without_mora_nothing_is_decoded_and_the_mode_stays(decode):
    choice = choose_decode(MotionSettings(mora_weight=0.0, decode=decode), WAN_1_3B, CUDA, None)
    assert (choice.decode, choice.recompute, choice.bytes, choice.tiny_file) == (decode, False, 0, None)


@pytest.mark.parametrize("decode, words", [
    ("exact", "Change decode to 'exact-low-memory'"), ("windowed", "change decode to 'tiny'"),
    ("exact-low-memory", "Change decode to 'tiny'"), ("tiny", "Lower batch_size, the frames"),
])  # fmt: skip
def test_a_step_out_of_memory_is_told_a_mode_that_needs_less(decode, words):
    advice = choose_memory_advice(MotionSettings(decode=decode))
    assert words in advice and advice.endswith("height.")
    assert "decode" not in choose_memory_advice(MotionSettings(mora_weight=0.0))
