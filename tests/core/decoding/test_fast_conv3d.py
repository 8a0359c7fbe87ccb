import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

from smra_core.decoding.fast_conv3d import (
    NARROW,
    convolve_3d,
    convolve_stacked_frames,
    is_slow_as_conv3d,
    wastes_memory_in_conv3d,
    with_fast_layers,
)
from smra_core.standalone.diffusers_wan import DiffusersCodec


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 1, 1)])
def test_stacked_taps_are_a_convolution_over_the_volume(kernel):
    x, weight, bias = torch.randn(2, 3, 5, 4, 6), torch.randn(7, 3, *kernel), torch.randn(7)
    borders = (kernel[1] // 2, kernel[2] // 2)
    torch.testing.assert_close(
        convolve_stacked_frames(x, weight, bias, borders),
        F.conv3d(x, weight, bias, padding=(0, *borders)),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("channels, dtype, slow", [
    (NARROW - 1, torch.float32, True), (NARROW, torch.float32, False), (NARROW - 1, torch.float64, False),
])  # fmt: skip
def test_only_narrow_float32_volumes_are_rewritten(channels, dtype, slow):
    x, weight = (
        torch.randn(1, channels, 3, 2, 2, dtype=dtype),
        torch.randn(NARROW, channels, 3, 1, 1, dtype=dtype),
    )
    assert is_slow_as_conv3d(x, weight) == slow
    torch.testing.assert_close(convolve_3d(x, weight, None), F.conv3d(x, weight), atol=1e-4, rtol=1e-4)


def test_a_vae_with_fast_layers_says_the_same():
    torch.manual_seed(3)
    plain = AutoencoderKLWan(base_dim=4).requires_grad_(False)
    fast = with_fast_layers(copy.deepcopy(plain))
    pixels = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    latents = plain.encode(pixels).latent_dist.mean
    torch.testing.assert_close(fast.encode(pixels).latent_dist.mean, latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        fast.decode(latents).sample, plain.decode(latents).sample, atol=1e-5, rtol=1e-5
    )
    assert list(fast.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("version, cudnn, dtype, bad", [
    ("2.9.0+cu128", 91002, torch.bfloat16, True),
    ("2.9.1", 91499, torch.float16, True),
    ("2.9.1", 91500, torch.bfloat16, False),
    ("2.9.0", 91002, torch.float32, False),
    ("2.8.0", 91002, torch.bfloat16, False),
    ("2.10.0", 91002, torch.bfloat16, False),
    ("2.9.0+cpu", None, torch.bfloat16, False),
])  # fmt: skip
def test_only_the_bad_combination_is_told(monkeypatch, version, cudnn, dtype, bad):
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    assert wastes_memory_in_conv3d(dtype) == bad


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_vae_in_half_precision_stays_in_it_on_every_device(device):
    with torch.device(device):
        codec = DiffusersCodec(AutoencoderKLWan(base_dim=8).to(torch.bfloat16))
        clip = torch.zeros(1, 3, 5, 16, 16)
    latents = codec.encode(clip)
    assert (latents.dtype, tuple(latents.shape)) == (torch.bfloat16, (1, 16, 2, 2, 2))
    assert codec.decode(latents).dtype == torch.bfloat16
