"""Devices and inputs of the GPU tests.

Tests of `cuda` are skipped where there is no card; tests of `device` run on the CPU then, so that they cannot
fall behind the code. Tests of streamed weights belong into a file of their own beside these.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smra_core.data.motion_clip import MotionClip
from smra_core.data.subject_set import SubjectImage
from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.miniature.small_settings import MOTION, MOTION_TRAINING, SUBJECT, SUBJECT_TRAINING
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from smra_core.standalone.backend import StandaloneBackend
from smra_core.storage.tensor_cache import TensorCache
from smra_core.training.motion import train_motion
from smra_core.training.subject import train_subject

SIDE, FRAMES = 64, 9


@pytest.fixture
def cuda():
    """A CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA card")
    yield torch.device("cuda")
    torch.cuda.empty_cache()


@pytest.fixture
def device():
    """A CUDA device, or the CPU where there is no card."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def full_float32():
    """Convolutions in float32 proper, not in TF32, as matrix products are by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def make_backend(tmp_path):
    """A function that makes the miniature's backend on a device, with folders of its own for each name."""

    def make(device, dtype=torch.float32, name="runs") -> StandaloneBackend:
        runs, cache = tmp_path / name, TensorCache(tmp_path / f"{name} cache")
        return StandaloneBackend(MINIATURE_FILES, runs, cache, device, dtype)

    return make


def _draw(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def picture():
    """A random picture whose subject is its middle."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 1
    return SubjectImage("a", Path("a.png"), _draw(3, SIDE, SIDE), mask, "A picture of sks dog")


@pytest.fixture
def clip():
    """A random picture that moves to the right by two pixels a frame."""
    wide = _draw(3, SIDE, SIDE + 2 * FRAMES)
    frames = torch.stack([wide[..., 2 * i : 2 * i + SIDE] for i in range(FRAMES)])
    return MotionClip("walk", Path("walk.mp4"), frames, "a person is vvt walking", 16.0, [])


@pytest.fixture
def train_a_motion(clip):
    """A function that trains a motion LoRA for a few steps, and returns the path of its file."""

    def train(backend, steps, on_step=None, frames=FRAMES) -> Path:
        settings = replace(MOTION_TRAINING, steps=steps, save_every=1)
        short, motion = clip._replace(frames=clip.frames[:frames]), replace(MOTION, frames=frames)
        return train_motion(backend, [short], SEA_RAFT_FILE, motion, settings, on_step=on_step).path

    return train


@pytest.fixture
def train_a_subject(picture):
    """A function that trains a subject LoRA for a few steps, and returns the path of its file."""

    def train(backend, steps, on_step=None) -> Path:
        settings = replace(SUBJECT_TRAINING, steps=steps, batch_size=1, save_every=1)
        return train_subject(backend, [picture], DINOV2_FILE, SUBJECT, settings, on_step=on_step).path

    return train
