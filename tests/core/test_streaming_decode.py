from functools import partial

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import nn

from smra_core.streaming_decode import FrozenDecoder, unwhitened
from smra_core.wan import LATENT_MEAN, LATENT_STD, frames_of_latent

LATENTS = (2, 16, 3, 2, 3)


def tiny_vae(**changes):
    torch.manual_seed(5)
    vae = AutoencoderKLWan(base_dim=4, **changes).requires_grad_(False)
    for module in vae.modules():
        if isinstance(module, WanUpsample):
            module.forward = partial(nn.Upsample.forward, module)  # without its detour through float32
    vae.decoder.conv_out.weight.mul_(0.25)  # so that no pixel reaches the clamp of diffusers
    return vae


def decoded(vae, latents):
    pixels = vae.decode(unwhitened(latents)).sample
    assert pixels.abs().max() < 1
    return pixels


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_streaming_equals_the_decoder_of_diffusers(dtype, tolerance):
    vae, latents = tiny_vae().to(dtype), torch.randn(LATENTS, dtype=dtype)
    expected = decoded(vae, latents)
    torch.testing.assert_close(
        torch.cat([*FrozenDecoder.of(vae).stream(latents)], 2), expected, atol=1e-5, rtol=0
    )


def test_each_latent_gives_the_frames_it_stands_for():
    pixels = FrozenDecoder.of(tiny_vae()).stream(torch.randn(LATENTS))
    assert [part.shape[2] for part in pixels] == [len(frames_of_latent(k)) for k in range(LATENTS[2])]


def test_the_gradient_crosses_latents():
    vae = tiny_vae().double()
    latents = torch.randn(LATENTS, dtype=torch.float64, requires_grad=True)
    pull = torch.randn_like(decoded(vae, latents))
    (expected,) = torch.autograd.grad(decoded(vae, latents), latents, pull)
    (gradient,) = torch.autograd.grad(torch.cat([*FrozenDecoder.of(vae).stream(latents)], 2), latents, pull)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


def test_later_latents_leave_earlier_frames_alone():
    decoder, latents = FrozenDecoder.of(tiny_vae()), torch.randn(LATENTS)
    changed = latents.clone()
    changed[:, :, 2] += 1
    before, after = [*decoder.stream(latents)], [*decoder.stream(changed)]
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


def test_model_space_is_whitened():
    mean, std = torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD)
    whitened = torch.stack([torch.zeros(16), torch.ones(16)]).view(2, 16, 1, 1, 1)
    torch.testing.assert_close(unwhitened(whitened).flatten(1), torch.stack([mean, mean + std]))


def test_the_vae_of_wan_22_is_refused():
    vae = tiny_vae(z_dim=48, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
    with pytest.raises(ValueError, match="48 latent channels.*WAN 2.1"):
        FrozenDecoder.of(vae)
