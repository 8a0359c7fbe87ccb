from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import nn

from smra_core.pixel_gradient import FlowObjective, flow_loss_and_gradient, streamed_loss
from smra_core.streaming_decode import FrozenDecoder, unwhitened

BATCH, LATENTS, PAIRS = 2, 4, 12
SHAPE = (BATCH, 16, LATENTS, 2, 2)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(5)
    vae = AutoencoderKLWan(base_dim=4).double().requires_grad_(False)
    for module in vae.modules():
        if isinstance(module, WanUpsample):
            module.forward = partial(nn.Upsample.forward, module)  # without its detour through float32
    vae.decoder.conv_out.weight.mul_(0.25)  # so that no pixel reaches the clamp of diffusers
    return vae


def smooth_flow(frames):
    """A stand-in flow net: differentiable everywhere, each pair by itself, not linear in either frame."""
    before, after = F.avg_pool2d(frames[:-1], 3, 1, 1), frames[1:]
    return torch.stack(
        [torch.tanh(before[:, 0] * after[:, 1] / 1e4), torch.sin(after[:, 2] / 40 + before[:, 1] / 90)], 1
    )


def squared(flow, reference):
    return ((flow - reference) ** 2).mean()


@pytest.fixture
def objective(vae):
    return FlowObjective(FrozenDecoder.of(vae), smooth_flow, squared)


@pytest.fixture
def clip():
    """Latents that want a gradient, and a reference flow."""
    torch.manual_seed(7)
    latents = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    return latents, torch.randn(BATCH, PAIRS, 2, 16, 16, dtype=torch.float64)


def plain_losses(vae, latents, reference, pairs=slice(None)):
    """The same loss in one graph through diffusers' own decode."""
    pixels = vae.decode(unwhitened(latents)).sample
    assert pixels.abs().max() < 1
    frames = (pixels.transpose(1, 2) + 1) * 127.5
    return torch.stack(
        [squared(smooth_flow(f)[pairs], r[pairs]) for f, r in zip(frames, reference, strict=True)]
    )


def gradient_of(losses, latents):
    return torch.autograd.grad(losses @ losses.new_tensor([1.0, -3.0]), latents)[0]


def test_loss_and_gradient_equal_one_graph_through_the_whole_decoder(vae, objective, clip):
    latents, reference = clip
    expected, losses = plain_losses(vae, latents, reference), streamed_loss(latents, reference, objective)
    torch.testing.assert_close(losses, expected, atol=1e-12, rtol=1e-9)
    gradient = gradient_of(losses, latents)
    torch.testing.assert_close(gradient, gradient_of(expected, latents), atol=1e-12, rtol=1e-9)
    assert (gradient.flatten(3).abs().amax((0, 1, 3)) > 0).all()


def test_the_gradient_is_the_slope(objective, clip, finite_difference):
    latents, reference = clip
    (gradient,) = torch.autograd.grad(streamed_loss(latents, reference, objective).sum(), latents)
    direction = torch.randn(SHAPE, dtype=torch.float64)
    slope = finite_difference(
        lambda: streamed_loss(latents, reference, objective).sum(), latents, direction, 1e-5
    )
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    "window, pairs", [(range(2, 4), slice(4, 12)), (range(1, 2), slice(0, 4)), (range(0, 3), slice(0, 8))]
)
def test_a_window_compares_its_own_frames_with_the_latents_before_held_still(
    vae, objective, clip, window, pairs
):
    latents, reference = clip
    still = torch.cat([latents[:, :, : window.start].detach(), latents[:, :, window.start :]], 2)
    expected = plain_losses(vae, still, reference, pairs)
    losses = streamed_loss(latents, reference, objective, window)
    torch.testing.assert_close(losses, expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(
        gradient_of(losses, latents), gradient_of(expected, latents), atol=1e-12, rtol=1e-9
    )


def test_windows_that_share_out_the_clip_average_to_the_whole_loss(objective, clip):
    latents, reference = clip
    parts = [streamed_loss(latents, reference, objective, range(k, k + 1)) for k in range(1, LATENTS)]
    torch.testing.assert_close(torch.stack(parts).mean(0), streamed_loss(latents, reference, objective))


def test_samples_do_not_touch_each_other(objective, clip):
    latents, reference = clip
    together = torch.autograd.grad(streamed_loss(latents, reference, objective)[0], latents)[0]
    alone = latents[:1].detach().requires_grad_()
    (expected,) = torch.autograd.grad(streamed_loss(alone, reference[:1], objective)[0], alone)
    assert torch.equal(together[:1], expected) and not together[1:].any()


def test_flow_of_a_reference_of_itself_costs_nothing_and_half_precision_keeps_its_dtype():
    pixels = (torch.rand(1, 3, 6, 8, 8) * 2 - 1).bfloat16()
    own = smooth_flow((pixels[0].transpose(0, 1).float() + 1) * 127.5)
    loss, gradient = flow_loss_and_gradient(pixels, own, FlowObjective(None, smooth_flow, squared))
    assert loss == 0 and gradient.dtype == torch.bfloat16


def test_frames_beyond_the_range_still_get_a_gradient():
    pixels = torch.full((1, 3, 5, 4, 4), 1.5)
    _, gradient = flow_loss_and_gradient(
        pixels, torch.ones(4, 2, 4, 4), FlowObjective(None, smooth_flow, squared)
    )
    assert gradient.abs().sum() > 0


def test_a_reference_of_another_length_is_refused(objective, clip):
    latents, reference = clip
    with pytest.raises(ValueError, match="13 frames and 12 pairs.*has 11"):
        streamed_loss(latents, reference[:, 1:], objective)


@pytest.mark.parametrize("window", [range(0, 1), range(3, 5), range(2, 2)])
def test_a_window_without_pairs_is_refused(objective, clip, window):
    with pytest.raises(ValueError, match="hold no pair"):
        streamed_loss(*clip, objective, window)
