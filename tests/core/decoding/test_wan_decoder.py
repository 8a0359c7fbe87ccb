from functools import partial

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import nn

from smra_core.decoding.decoder_blocks import Residual
from smra_core.decoding.wan_decoder import WanVideoDecoder
from smra_core.wan.latents import denormalize, normalize
from smra_core.wan.spec import LATENT_SPACES, frames_of_latent

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
    pixels = vae.decode(denormalize(latents)).sample
    assert pixels.abs().max() < 1
    return pixels


@pytest.fixture(scope="module")
def exact_vae():
    return tiny_vae().double()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("latents, at_once", [(1, 1), (2, 2), (3, 1), (4, 3), (7, 7)])
def test_pixels_and_gradient_are_those_of_diffusers(exact_vae, latents, at_once, recompute):
    torch.manual_seed(latents)
    z = torch.randn(1, 16, latents, 1, 2, dtype=torch.float64, requires_grad=True)
    expected = decoded(exact_vae, z)
    decoder, past, parts = WanVideoDecoder.of(exact_vae, recompute), None, []
    for some in z.split(at_once, 2):
        part, past = decoder.step(some, past)
        parts.append(part)
    pixels, pull = torch.cat(parts, 2), torch.randn_like(expected)
    torch.testing.assert_close(pixels, expected, atol=1e-12, rtol=1e-9)
    gradient, expected = (torch.autograd.grad(x, z, pull)[0] for x in (pixels, expected))
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


def test_streaming_equals_the_decoder_of_diffusers_in_float32():
    vae, latents = tiny_vae(), torch.randn(LATENTS)
    pixels = torch.cat([*WanVideoDecoder.of(vae).stream(latents)], 2)
    torch.testing.assert_close(pixels, decoded(vae, latents), atol=1e-5, rtol=0)


class NativeVae(nn.Module):
    """The parts of diffusers' VAE in the published layout, which ComfyUI has."""

    def __init__(self, vae):
        super().__init__()
        self.conv2, self.decoder = vae.post_quant_conv, nn.Module()
        old, new = vae.decoder, self.decoder
        new.conv1, new.middle, new.upsamples = old.conv_in, nn.Sequential(), nn.Sequential()
        (attention,) = old.mid_block.attentions
        first, second = map(native_residual, old.mid_block.resnets)
        new.middle.extend([first, attention, second])
        for up in old.up_blocks:
            new.upsamples.extend([*map(native_residual, up.resnets), *(up.upsamplers or ())])
        new.head = nn.Sequential(old.norm_out, nn.SiLU(), old.conv_out)


def native_residual(block):
    native = nn.Module()
    first, second = (
        (block.norm1, nn.SiLU(), block.conv1),
        (block.norm2, nn.SiLU(), nn.Dropout(0), block.conv2),
    )
    native.residual = nn.Sequential(*first, *second)
    native.shortcut = block.conv_shortcut or nn.Identity()
    return native


def test_a_vae_in_the_native_layout_decodes_alike():
    vae, latents = tiny_vae(), torch.randn(LATENTS)
    pixels, _ = WanVideoDecoder.of(NativeVae(vae)).step(latents)
    assert torch.equal(pixels, WanVideoDecoder.of(vae).step(latents)[0])


def test_something_that_is_no_video_vae_is_refused():
    with pytest.raises(ValueError, match="Linear has no decoder of a known layout"):
        WanVideoDecoder.of(nn.Linear(1, 1))


@pytest.mark.parametrize("recompute, kept", [(False, 2), (True, 1)])
def test_a_residual_block_saves_its_input_and_at_most_one_tensor_more(recompute, kept):
    block = next(part for part in WanVideoDecoder.of(tiny_vae()).blocks if isinstance(part, Residual))
    channels = block.first.conv.weight.shape[1]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        block(torch.randn(1, channels, 5, 2, 2, requires_grad=True), (), recompute, keep_state=True)
    assert [x.shape for x in saved] == kept * [(1, channels, 5, 2, 2)]


def test_weights_loaded_in_inference_mode_are_no_hindrance():
    with torch.inference_mode():
        vae = tiny_vae()
    latents = torch.randn(LATENTS, requires_grad=True)
    pixels, _ = WanVideoDecoder.of(vae).step(latents)
    (gradient,) = torch.autograd.grad(pixels.sum(), latents)
    assert gradient.abs().sum() > 0


def test_each_latent_gives_the_frames_it_stands_for():
    pixels = WanVideoDecoder.of(tiny_vae()).stream(torch.randn(LATENTS))
    assert [part.shape[2] for part in pixels] == [len(frames_of_latent(k)) for k in range(LATENTS[2])]


def test_later_latents_leave_earlier_frames_alone():
    decoder, latents = WanVideoDecoder.of(tiny_vae()), torch.randn(LATENTS)
    changed = latents.clone()
    changed[:, :, 2] += 1
    before, after = [*decoder.stream(latents)], [*decoder.stream(changed)]
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize("space", LATENT_SPACES.values(), ids=lambda space: space.name)
def test_model_space_is_normalized(space):
    mean, std = torch.tensor(space.mean), torch.tensor(space.std)
    normalized = torch.stack([torch.zeros(len(mean)), torch.ones(len(mean))])[..., None, None, None]
    torch.testing.assert_close(denormalize(normalized).flatten(1), torch.stack([mean, mean + std]))
    torch.testing.assert_close(normalize(denormalize(normalized)), normalized)


def test_latents_of_no_vae_of_wan_are_refused():
    with pytest.raises(ValueError, match=r"\[16, 48\] channels, got 32"):
        normalize(torch.zeros(1, 32, 1, 2, 2))


def test_the_vae_of_wan_22_is_refused():
    vae = tiny_vae(z_dim=48, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
    with pytest.raises(ValueError, match="48 latent channels.*WAN 2.1"):
        WanVideoDecoder.of(vae)
