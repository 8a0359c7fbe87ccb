"""A run that is canceled on a device and continued."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from smra_core.miniature.small_settings import MOTION, MOTION_TRAINING, SUBJECT, SUBJECT_TRAINING
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from smra_core.training.motion import train_motion
from smra_core.training.subject import train_subject

STEPS, CANCELED_AT = 3, 1
FRAMES = 5
TOLERANCE = 0.02
"""Relative difference of two runs on a card, which adds up some sums in an order that changes."""


class Canceled(Exception):
    """What a user's cancel raises."""


@pytest.fixture(params=["subject", "motion"])
def train(request, picture, clip):
    """A function that trains a LoRA with a backend, and returns the path of its file."""
    changes = dict(steps=STEPS, batch_size=1, save_every=1)

    def run(backend, on_step=None):
        if request.param == "subject":
            settings = replace(SUBJECT_TRAINING, **changes)
            return train_subject(backend, [picture], DINOV2_FILE, SUBJECT, settings, on_step=on_step).path
        motion, settings = replace(MOTION, frames=FRAMES), replace(MOTION_TRAINING, **changes)
        short = clip._replace(frames=clip.frames[:FRAMES])
        return train_motion(backend, short, SEA_RAFT_FILE, motion, settings, on_step=on_step).path

    return run


def cancel(info):
    """Cancel after a step, as a user interface does."""
    if info.step == CANCELED_AT:
        raise Canceled


def test_a_canceled_run_continues_where_it_stopped(device, full_float32, make_backend, train):
    seen = []
    with pytest.raises(Canceled):
        train(make_backend(device, name="canceled"), cancel)
    continued = load_file(train(make_backend(device, name="canceled"), lambda info: seen.append(info.step)))
    whole = load_file(train(make_backend(device, name="whole")))
    assert seen == list(range(CANCELED_AT + 1, STEPS + 1))
    assert whole.keys() == continued.keys()
    change = torch.cat([(whole[name] - continued[name]).flatten() for name in whole]).norm()
    length = torch.cat([tensor.flatten() for tensor in whole.values()]).norm()
    assert change <= (0 if device.type == "cpu" else TOLERANCE * length)
