"""What a run leaves on the card, and how it ends when memory runs out."""

import gc
from dataclasses import replace

import pytest
import torch

from smra_core.miniature.small_settings import MOTION, MOTION_TRAINING, SUBJECT, SUBJECT_TRAINING
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from smra_core.training.motion import train_motion
from smra_core.training.subject import train_subject

MIB = 2**20
STEPS = 3


def train_on(backend, clip, steps=STEPS, on_step=None):
    motion = replace(MOTION, frames=len(clip.frames))
    settings = replace(MOTION_TRAINING, steps=steps, save_every=1)
    return train_motion(backend, clip, SEA_RAFT_FILE, motion, settings, on_step=on_step)


def count_held():
    gc.collect()
    return torch.cuda.memory_allocated()


def test_a_finished_motion_run_leaves_nothing_on_the_card(cuda, make_backend, clip):
    held = []
    for name in ("first", "second", "third"):
        train_on(make_backend(cuda, torch.bfloat16, name=name), clip)
        held.append(count_held())
    assert held[1] == held[2]  # libraries keep workspaces from their first use on


def test_a_finished_subject_run_leaves_nothing_on_the_card(cuda, make_backend, picture):
    settings = replace(SUBJECT_TRAINING, steps=STEPS, batch_size=1)
    held = []
    for name in ("first", "second", "third"):
        train_subject(make_backend(cuda, name=name), [picture], DINOV2_FILE, SUBJECT, settings)
        held.append(count_held())
    assert held[1] == held[2]


def test_a_canceled_run_leaves_nothing_on_the_card(cuda, make_backend, clip):
    train_on(make_backend(cuda, name="first"), clip)
    before = count_held()

    def cancel(info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on(make_backend(cuda, name="canceled"), clip, on_step=cancel)
    assert count_held() == before


@pytest.fixture
def limit_memory(cuda):
    """A function that lets this process take only a few more bytes of the card; undone after the test."""
    total = torch.cuda.get_device_properties(cuda).total_memory

    def limit(more):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_run_out_of_memory_keeps_its_steps_and_says_what_to_change(cuda, make_backend, clip, limit_memory):
    train_on(make_backend(cuda, name="first"), clip)
    before, backend, seen = count_held(), make_backend(cuda, name="limited"), []
    told = "Out of memory in step 2; the steps before are kept. .*decode"
    with pytest.raises(torch.OutOfMemoryError, match=told):
        fill_and_train(backend, clip, limit_memory, seen)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert seen == [1]
    assert count_held() == before
    train_on(backend, clip, on_step=lambda info: seen.append(info.step))
    assert seen == [1, 2, 3]


def fill_and_train(backend, clip, limit_memory, seen):
    """Train; after the first step nothing of the card is left to take."""
    hold = []

    def fill(info):
        seen.append(info.step)
        limit_memory(0)
        for size in (16 * MIB, MIB, 2**10):
            try:
                while True:
                    hold.append(torch.empty(size, dtype=torch.uint8, device=backend.device))
            except torch.OutOfMemoryError:
                continue

    try:
        train_on(backend, clip, on_step=fill)
    finally:
        hold.clear()
