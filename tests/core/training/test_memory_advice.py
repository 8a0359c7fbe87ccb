"""Changes that make a training run fit, told before anything is loaded."""

import logging

import pytest
import torch

from smra_core.training.decode_memory import estimate
from smra_core.training.memory import (
    GIB,
    DitMemory,
    count_model_bytes,
    estimate_motion_memory,
    estimate_subject_memory,
)
from smra_core.training.memory_advice import (
    check_memory,
    describe_lack,
    list_motion_changes,
    list_subject_changes,
    tell_subject_memory,
)
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.sura import SubjectSettings
from smra_core.wan.spec import WAN_1_3B, WAN_14B

ALL = DitMemory(count_model_bytes(WAN_1_3B))
WAITING = DitMemory(count_model_bytes(WAN_14B), resident=0)
LARGE = MotionSettings(width=832, height=480, frames=81)


def suggest(memory, settings=LARGE, has_tiny=True, **options):
    return list_motion_changes(WAN_1_3B, settings, ALL, memory * GIB, has_tiny, **options)


def test_the_first_two_changes_that_fit_are_told_with_what_they_need():
    first, second = suggest(24)
    assert first.startswith("decode tiny (") and second.startswith("frames 53 (")
    assert first.endswith(" GiB)")


def test_a_change_that_is_told_fits_and_is_no_smaller_than_it_must_be():
    def fits(width, height, frames):
        changed = MotionSettings(width=width, height=height, frames=frames)
        choice = estimate(changed, "windowed", True, WAN_1_3B)
        return estimate_motion_memory(WAN_1_3B, changed, choice, ALL).fits(16 * GIB)

    told = suggest(16, has_tiny=False)
    assert [text.split(" (")[0] for text in told] == [
        "width 672 and height 384 with frames 25", "width 544 and height 320"
    ]  # fmt: skip
    assert fits(672, 384, 25) and fits(544, 320, 81)
    assert not (fits(832, 480, 53) or fits(832, 480, 25) or fits(672, 384, 81) or fits(672, 384, 53))


def test_a_tiny_decoder_that_is_not_there_is_told_with_its_file():
    assert suggest(24, has_tiny=False)[0].startswith("decode tiny (file lighttaew2_1) (")
    assert not any("decode" in text for text in suggest(24, MotionSettings(decode="tiny")))


def test_a_smaller_batch_comes_first():
    assert suggest(24, MotionSettings(), batch_size=2)[0].startswith("batch_size 1 (")
    both = list_subject_changes(WAN_1_3B, SubjectSettings(), ALL, 6 * GIB, batch_size=8)
    assert both[0].startswith("batch_size 1 (") and both[1].startswith("width ")


def test_where_nothing_fits_another_model_or_device_is_told():
    assert suggest(2) == []
    account = estimate_subject_memory(WAN_14B, SubjectSettings(), WAITING)
    text = describe_lack(account, 2 * GIB, [])
    assert text.endswith("No smaller setting fits: take a smaller model or another device.")


def test_the_lack_is_told_by_part():
    account = estimate_motion_memory(WAN_1_3B, LARGE, estimate(LARGE, "windowed", False, WAN_1_3B), ALL)
    text = describe_lack(account, 16 * GIB, ["frames 25 (9.0 GiB)", "width 16"])
    assert text.startswith("This training does not fit: it needs 24.") and "activations" in text
    assert text.endswith("and the device has 16.0 GiB. What fits: frames 25 (9.0 GiB), or width 16.")


def test_what_surely_does_not_fit_is_refused_and_what_may_is_warned_of(caplog):
    account = estimate_subject_memory(WAN_14B, SubjectSettings(), WAITING)
    assert check_memory(account, account.total, lambda: 1 / 0) == []
    (text,) = check_memory(account, account.total / 1.09, lambda: ["width 16"])
    assert text.startswith("This training may run out of memory") and text in caplog.text
    with pytest.raises(ValueError, match=r"does not fit: it needs .* What fits: width 16\."):
        check_memory(account, account.total / 1.11, lambda: ["width 16"])


def test_smaller_frames_are_as_large_as_the_flow_net_needs():
    """A tiny decoder shows half of the size, of which SEA-RAFT M needs 128 pixels."""
    for memory in (8, 12):
        for text in suggest(memory, MotionSettings(width=832, height=480, frames=81, decode="tiny")):
            assert "height" not in text or int(text.split("height ")[1].split()[0]) >= 256
    assert all("height 112" not in text for text in suggest(8, MotionSettings()))


def test_a_subject_run_is_told_on_a_card_and_what_fits_if_it_does_not(monkeypatch, caplog):
    def tell(gib, device="cuda", weights=ALL):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, gib * GIB))
        caplog.clear()
        with caplog.at_level(logging.INFO, "smrabooth"):
            tell_subject_memory(SubjectSettings(), 8, WAN_1_3B, torch.device(device), weights)
        return caplog.text

    assert tell(24, "cpu") == ""
    assert "Training takes about 5." in tell(24) and "may run out" not in caplog.text
    assert "has 5.0 GiB. 22 of 30 blocks wait in host memory." in tell(5) and "may run out" not in caplog.text
    assert "All 30 blocks and their inputs wait in host memory." in tell(3.5)
    assert "and 3.3 GiB of host memory. The device has 3.5 GiB" in caplog.text
    stored = DitMemory(ALL.model_bytes // 2, can_wait=True, restored_bytes=ALL.model_bytes)
    assert "(weights 2.6" in tell(24, weights=stored)  # restored when loaded, as all of it fits
    assert "(weights 1.3" in tell(5.5, weights=stored)
    assert "may run out" not in caplog.text
    assert "may run out of memory" in tell(2.5) and "What fits: batch_size 1 (" in caplog.text
    with pytest.raises(ValueError, match="does not fit: it needs 2"):
        tell(2.2)
