"""float16 is refused for training, float64 stays off the device, and keys of caches hold the precision."""

from types import SimpleNamespace

import pytest
import torch
from device_without_float64 import OnDeviceWithoutFloat64

from smra_core.storage.content_hash import hash_content
from smra_core.storage.tensor_cache import TensorCache
from smra_core.training.backend import encode_clips_once
from smra_core.training.motion import train_motion
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.subject import train_subject
from smra_core.training.sura import SubjectSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.wan.flow_matching import velocity_weight


@pytest.mark.parametrize("train, settings", [
    (train_subject, SubjectSettings()), (train_motion, MotionSettings()),
])  # fmt: skip
def test_float16_is_refused_before_anything_is_encoded(train, settings, tmp_path):
    backend = SimpleNamespace(dtype=torch.float16)  # has nothing that could encode
    file = tmp_path / "weights.safetensors"
    with pytest.raises(ValueError, match="float16 cannot be trained in.*--dtype bfloat16"):
        train(backend, [], file, settings, TrainSettings())


def test_the_weight_of_the_velocity_loss_needs_no_float64_on_the_device():
    sigma = torch.rand(4, generator=torch.Generator().manual_seed(0))
    on_device = sigma.as_subclass(OnDeviceWithoutFloat64)
    with pytest.raises(TypeError, match="float64"):
        on_device.double()
    for shift in (1.0, 3.0):
        assert torch.equal(velocity_weight(on_device, shift), velocity_weight(sigma, shift))


def test_what_was_encoded_in_another_precision_is_encoded_anew(tmp_path):
    cache, clips, encoded = TensorCache(tmp_path), [torch.zeros(1, 3, 8, 8)], []

    def encode(clip):
        encoded.append(clip)
        return clip + len(encoded)

    def latents(dtype):
        return encode_clips_once(cache, "vae", dtype, clips, encode)[0].max().item()

    assert [latents(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float32)] == [1, 2, 1]


def test_keys_of_float32_are_those_without_a_precision(tmp_path):
    cache = TensorCache(tmp_path)
    encode_clips_once(cache, "vae", torch.float32, [torch.zeros(1, 3, 8, 8)], lambda clip: clip)
    (file,) = tmp_path.iterdir()
    key = {"vae": "vae", "frames": hash_content(torch.zeros(1, 3, 8, 8))}
    assert cache.get_path("latents", key) == file
