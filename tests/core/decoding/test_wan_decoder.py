import pytest
import torch
from random_vaes import SPACES, random_vae
from torch import nn

from smra_core.decoding.decoder_blocks import Residual
from smra_core.decoding.residual_stage import ResidualStage, _AddCopies, copy_channels, sum_copies
from smra_core.decoding.wan_decoder import WanVideoDecoder
from smra_core.wan.latents import denormalize, normalize
from smra_core.wan.spec import LATENTS_21, LATENTS_22, frames_of_latent

LATENTS = (2, 16, 3, 2, 3)
of_both = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)


def random_latents(space, count=3):
    return torch.randn(2, space.channels, count, 2, 3, generator=torch.Generator().manual_seed(count))


def decoded(vae, latents):
    pixels = vae.decode(denormalize(latents)).sample
    assert pixels.abs().max() < 1
    return pixels


@pytest.fixture(scope="module", params=SPACES, ids=lambda space: space.name)
def exact_vae(request):
    return random_vae(request.param).double()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("latents, at_once", [(1, 1), (2, 2), (3, 1), (4, 3), (7, 7)])
def test_pixels_and_gradient_are_those_of_diffusers(exact_vae, latents, at_once, recompute):
    torch.manual_seed(latents)
    z = torch.randn(1, exact_vae.z_dim, latents, 1, 2, dtype=torch.float64, requires_grad=True)
    expected = decoded(exact_vae, z)
    assert z.shape[3] * exact_vae.spatial_compression_ratio == expected.shape[3]
    decoder, past, parts = WanVideoDecoder.of(exact_vae, recompute), None, []
    for some in z.split(at_once, 2):
        part, past = decoder.step(some, past)
        parts.append(part)
    pixels, pull = torch.cat(parts, 2), torch.randn_like(expected)
    torch.testing.assert_close(pixels, expected, atol=1e-12, rtol=1e-9)
    gradient, expected = (torch.autograd.grad(x, z, pull)[0] for x in (pixels, expected))
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


@of_both
def test_streaming_equals_the_decoder_of_diffusers_in_float32(space):
    vae, latents = random_vae(space), random_latents(space)
    pixels = torch.cat([*WanVideoDecoder.of(vae).stream(latents)], 2)
    torch.testing.assert_close(pixels, decoded(vae, latents), atol=1e-5, rtol=0)


def test_the_shortcut_copies_channels_into_time_and_space():
    # Two channels become two of 8 values each: a value is copied 8 times, channel by channel.
    x = torch.tensor([[1.0, 2, 3], [10, 20, 30]]).view(1, 2, 3, 1, 1)
    copies = copy_channels(x, channels=2, times=2)
    assert copies.shape == (1, 2, 6, 2, 2)
    assert copies[0, :, :, 0, 1].tolist() == [[1, 1, 2, 2, 3, 3], [10, 10, 20, 20, 30, 30]]
    # Two channels become one of 4 values: the upper row of pixels is the first, the lower the second.
    assert copy_channels(x, channels=1, times=1)[0, 0, 0].tolist() == [[1, 1], [10, 10]]
    assert sum_copies(torch.ones(1, 1, 3, 2, 2), channels=2, times=1).eq(2).all()


@pytest.mark.parametrize("starts_clip", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_the_gradient_of_the_shortcut_is_the_slope(times, starts_clip):
    x = torch.randn(1, 4, 6, 1, 2, dtype=torch.float64, requires_grad=True)
    out = torch.randn(1, 2, times * 6 - (times - 1) * starts_clip, 2, 4, dtype=torch.float64)
    add = lambda out, x: _AddCopies.apply(out.clone(), x, times, starts_clip)  # noqa: E731
    assert torch.autograd.gradcheck(add, (out.requires_grad_(), x))


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
            upsampling = [up.upsampler] if getattr(up, "upsampler", None) else getattr(up, "upsamplers", None)
            parts = [*map(native_residual, up.resnets), *(upsampling or ())]
            new.upsamples.extend([native_stage(up, parts)] if hasattr(up, "avg_shortcut") else parts)
        new.head = nn.Sequential(old.norm_out, nn.SiLU(), old.conv_out)


def native_stage(up, parts):
    native = nn.Module()
    native.upsamples, native.avg_shortcut = nn.Sequential(*parts), up.avg_shortcut
    return native


def native_residual(block):
    native = nn.Module()
    first, second = (
        (block.norm1, nn.SiLU(), block.conv1),
        (block.norm2, nn.SiLU(), nn.Dropout(0), block.conv2),
    )
    native.residual = nn.Sequential(*first, *second)
    native.shortcut = block.conv_shortcut or nn.Identity()
    return native


@of_both
def test_a_vae_in_the_native_layout_decodes_alike(space):
    vae, latents = random_vae(space), random_latents(space)
    pixels, _ = WanVideoDecoder.of(NativeVae(vae)).step(latents)
    assert torch.equal(pixels, WanVideoDecoder.of(vae).step(latents)[0])


def test_something_that_is_no_video_vae_is_refused():
    with pytest.raises(ValueError, match="Linear has no decoder of a known layout"):
        WanVideoDecoder.of(nn.Linear(1, 1))


@pytest.mark.parametrize("recompute, kept", [(False, 2), (True, 1)])
def test_a_residual_block_saves_its_input_and_at_most_one_tensor_more(recompute, kept):
    block = next(part for part in WanVideoDecoder.of(random_vae()).blocks if isinstance(part, Residual))
    channels = block.first.conv.weight.shape[1]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        block(torch.randn(1, channels, 5, 2, 2, requires_grad=True), (), recompute, keep_state=True)
    assert [x.shape for x in saved] == kept * [(1, channels, 5, 2, 2)]


def count_saved_values(block, x, times):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        block(x, times, True, keep_state=False)
    return sum(tensor.numel() for tensor in saved)


def test_a_shortcut_saves_nothing():
    stage = next(b for b in WanVideoDecoder.of(random_vae(LATENTS_22)).blocks if isinstance(b, ResidualStage))
    channels = stage.blocks[0].first.conv.weight.shape[1]
    x = torch.randn(1, channels, 5, 2, 2, requires_grad=True)
    within, saved = x, 0
    for block in stage.blocks:
        saved += count_saved_values(block, within, ())
        within = block(within, (), True, keep_state=False)[0].detach().requires_grad_()
    assert count_saved_values(stage, x, ()) == saved > 0


@of_both
def test_weights_loaded_in_inference_mode_are_no_hindrance(space):
    with torch.inference_mode():
        vae = random_vae(space)
    latents = random_latents(space).requires_grad_()
    pixels, _ = WanVideoDecoder.of(vae).step(latents)
    (gradient,) = torch.autograd.grad(pixels.sum(), latents)
    assert gradient.abs().sum() > 0


@of_both
def test_each_latent_gives_the_frames_it_stands_for(space):
    pixels = WanVideoDecoder.of(random_vae(space)).stream(random_latents(space))
    assert [part.shape[2] for part in pixels] == [len(frames_of_latent(k)) for k in range(LATENTS[2])]


@of_both
def test_later_latents_leave_earlier_frames_alone(space):
    decoder, latents = WanVideoDecoder.of(random_vae(space)), random_latents(space)
    changed = latents.clone()
    changed[:, :, 2] += 1
    before, after = [*decoder.stream(latents)], [*decoder.stream(changed)]
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


@of_both
def test_model_space_is_normalized(space):
    mean, std = torch.tensor(space.mean), torch.tensor(space.std)
    normalized = torch.stack([torch.zeros(len(mean)), torch.ones(len(mean))])[..., None, None, None]
    torch.testing.assert_close(denormalize(normalized).flatten(1), torch.stack([mean, mean + std]))
    torch.testing.assert_close(normalize(denormalize(normalized)), normalized)


def test_latents_of_no_vae_of_wan_are_refused():
    with pytest.raises(ValueError, match=r"\[16, 48\] channels, got 32"):
        normalize(torch.zeros(1, 32, 1, 2, 2))


@pytest.mark.parametrize("space, channels, message", [
    (LATENTS_21, 48, "8x8 pixels of a latent cell of 48 channels; Wan 2.2 5B's makes 16x16"),
    (LATENTS_22, 16, "16x16 pixels of a latent cell of 16 channels; WAN 2.1's makes 8x8"),
    (LATENTS_21, 24, "channels, got 24"),
])  # fmt: skip
def test_a_vae_of_other_latents_is_refused(space, channels, message):
    statistics = dict(latents_mean=[0.0] * channels, latents_std=[1.0] * channels)
    with pytest.raises(ValueError, match=message):
        WanVideoDecoder.of(random_vae(space, z_dim=channels, **statistics))
