"""What a run leaves on the card, and how it ends when memory runs out."""

import gc

import pytest
import torch

from tests.benchmarks.gpu.meter import run_case
from tests.benchmarks.gpu.short_memory import list_short_memory_cases
from tests.benchmarks.gpu.sizes import PAPER

MIB = 2**20
STEPS = 3
TOLD = ("half of the blocks wait", "all blocks and inputs wait", "fp8, all blocks wait",
        "INT8, all blocks on the card")  # fmt: skip
NEAR = 0.15
"""Relative difference of memory told and taken."""


def count_held():
    """Bytes that tensors hold on the card."""
    gc.collect()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("purpose, dtype", [("motion", torch.bfloat16), ("subject", torch.float32)])
def test_a_finished_run_leaves_nothing_on_the_card(cuda, make_backend, request, purpose, dtype):
    train, held = request.getfixturevalue(f"train_a_{purpose}"), []
    for name in ("first", "second", "third"):
        train(make_backend(cuda, dtype, name=name), STEPS)
        held.append(count_held())
    assert held[1] == held[2]  # libraries keep workspaces from their first use on


def test_a_canceled_run_leaves_nothing_on_the_card(cuda, make_backend, train_a_motion):
    train_a_motion(make_backend(cuda, name="first"), STEPS)
    before = count_held()

    def cancel(info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_a_motion(make_backend(cuda, name="canceled"), STEPS, cancel)
    assert count_held() == before


def test_a_step_takes_what_is_told_of_it_wherever_weights_and_inputs_wait(cuda):
    """A few blocks of the 14B's width at the paper's size, 16 bit, fp8 and INT8."""
    for row, work in list_short_memory_cases(PAPER._replace(few_blocks=4), cuda, 2):
        if row.case in TOLD and row.part.startswith("step"):
            run_case(row, cuda, work)
            taken = row.peak + row.outside
            assert sum(row.told.values()) == pytest.approx(taken, rel=NEAR), row.case
            assert row.kept == 0, row.case


def test_inputs_that_wait_are_not_on_the_card(cuda):
    """All inputs but those of two blocks, each 9360 tokens x 5120 x 2 bytes."""
    cases = list(list_short_memory_cases(PAPER._replace(few_blocks=6), cuda, 2))
    peaks = {}
    for row, work in cases:
        if row.case in ("all blocks wait", "all blocks and inputs wait") and row.part.startswith("step"):
            peaks[row.case] = run_case(row, cuda, work).peak
    saved = peaks["all blocks wait"] - peaks["all blocks and inputs wait"]
    assert saved == pytest.approx((6 - 2) * 9360 * 5120 * 2, rel=NEAR)


@pytest.fixture
def full_card(cuda):
    """A function that takes what is left of the card, up to what torch has taken already; undone by the
    test's end.
    """
    total, hold = torch.cuda.get_device_properties(cuda).total_memory, []

    def fill():
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
        for size in (16 * MIB, MIB, 2**10):
            try:
                while True:
                    hold.append(torch.empty(size, dtype=torch.uint8, device=cuda))
            except torch.OutOfMemoryError:
                continue

    def empty():
        hold.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)

    yield fill, empty
    empty()


def test_a_run_out_of_memory_keeps_its_steps_and_says_what_to_change(
    cuda, make_backend, train_a_motion, full_card
):
    fill, empty = full_card
    train_a_motion(make_backend(cuda, name="first"), STEPS)
    before, backend, seen = count_held(), make_backend(cuda, name="limited"), []

    def fill_after_the_first(info):
        seen.append(info.step)
        fill()

    told = "Out of memory in step 2; the steps before are kept. .*decode"
    with pytest.raises(torch.OutOfMemoryError, match=told):
        train_a_motion(backend, STEPS, fill_after_the_first)
    empty()
    assert seen == [1]
    assert count_held() == before
    train_a_motion(backend, STEPS, lambda info: seen.append(info.step))
    assert seen == [1, 2, 3]
