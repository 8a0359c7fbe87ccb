import pytest
import torch
from random_vaes import SPACES, random_vae
from toy_models import smooth_flow, squared

from smra_core.decoding.flow_gradient import (
    FlowComparison,
    compute_flow_loss,
    compute_flow_loss_and_gradient,
)
from smra_core.decoding.wan_decoder import WanVideoDecoder
from smra_core.decoding.windows import DecodeWindow
from smra_core.wan.latents import denormalize

BATCH, PAIRS, SIDE = 2, 12, 16


@pytest.fixture(scope="module", params=SPACES, ids=lambda space: space.name)
def space(request):
    return request.param


@pytest.fixture(scope="module")
def vae(space):
    return random_vae(space).double()


@pytest.fixture
def objective(vae):
    return FlowComparison(WanVideoDecoder.of(vae), smooth_flow, squared, pairs_per_chunk=4)


@pytest.fixture
def clip(space):
    """Latents of 16 pixels a side that want a gradient, and a reference flow."""
    torch.manual_seed(7)
    shape = (BATCH, *space.latent_shape(PAIRS + 1, SIDE, SIDE))
    latents = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    return latents, torch.randn(BATCH, PAIRS, 2, SIDE, SIDE, dtype=torch.float64)


def plain_losses(vae, latents, reference, pairs=slice(None)):
    """The same loss in one graph through diffusers' own decode."""
    pixels = vae.decode(denormalize(latents)).sample
    assert pixels.abs().max() < 1
    frames = (pixels.transpose(1, 2) + 1) * 127.5
    return torch.stack(
        [squared(smooth_flow(f)[pairs], r[pairs]) for f, r in zip(frames, reference, strict=True)]
    )


def gradient_of(losses, latents):
    return torch.autograd.grad(losses @ losses.new_tensor([1.0, -3.0]), latents)[0]


def test_loss_and_gradient_equal_one_graph_through_the_whole_decoder(vae, objective, clip):
    latents, reference = clip
    expected, losses = (
        plain_losses(vae, latents, reference),
        compute_flow_loss(latents, reference, objective),
    )
    torch.testing.assert_close(losses, expected, atol=1e-12, rtol=1e-9)
    gradient = gradient_of(losses, latents)
    torch.testing.assert_close(gradient, gradient_of(expected, latents), atol=1e-12, rtol=1e-9)
    assert (gradient.flatten(3).abs().amax((0, 1, 3)) > 0).all()


def test_the_gradient_is_the_slope(objective, clip, finite_difference):
    latents, reference = clip
    (gradient,) = torch.autograd.grad(compute_flow_loss(latents, reference, objective).sum(), latents)
    direction = torch.randn(latents.shape, dtype=torch.float64)
    slope = finite_difference(
        lambda: compute_flow_loss(latents, reference, objective).sum(), latents, direction, 1e-5
    )
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_graph_in_pieces_gives_the_same_gradient(objective, clip, at_once):
    latents, reference = clip
    expected = compute_flow_loss(latents, reference, objective)
    losses = compute_flow_loss(latents, reference, objective._replace(latents_at_once=at_once))
    torch.testing.assert_close(losses, expected, atol=1e-12, rtol=1e-9)
    gradient, expected = gradient_of(losses, latents), gradient_of(expected, latents)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


def state_before(decoder, latents, first):
    return None if first == 0 else decoder.step(latents.detach()[:, :, :first], None)[1]


@pytest.mark.parametrize("at_once", [0, 1])
@pytest.mark.parametrize("first, window, pairs", [
    (1, range(2, 4), slice(4, 12)), (0, range(1, 2), slice(0, 4)), (0, range(0, 3), slice(0, 8)),
])  # fmt: skip
def test_a_window_compares_its_window_with_the_latents_before_it_held_still(
    vae, objective, clip, first, window, pairs, at_once
):
    latents, reference = (tensor[:1] for tensor in clip)
    still = torch.cat([latents[:, :, :first].detach(), latents[:, :, first:]], 2)
    expected = plain_losses(vae, still, reference, pairs)
    window = DecodeWindow(window, first, state_before(objective.decoder, latents, first), weight=2.0)
    losses = compute_flow_loss(latents, reference, objective._replace(latents_at_once=at_once), [window])
    torch.testing.assert_close(losses, 2 * expected, atol=1e-12, rtol=1e-9)
    gradient, expected = (torch.autograd.grad(total, latents)[0] for total in (losses, 2 * expected))
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


def test_parameters_before_the_latents_get_the_gradient_of_one_graph(vae, objective, clip):
    latents, reference = clip
    weight = torch.eye(latents.shape[1], dtype=torch.float64).requires_grad_()
    predicted = torch.einsum("dc,bcfhw->bdfhw", weight, latents.detach())
    losses = plain_losses(vae, predicted, reference), compute_flow_loss(predicted, reference, objective)
    expected, gradient = (torch.autograd.grad(x.sum(), weight, retain_graph=True)[0] for x in losses)
    assert ((gradient - expected).norm() / expected.norm()).item() < 1e-12


def test_samples_do_not_touch_each_other(objective, clip):
    latents, reference = clip
    together = torch.autograd.grad(compute_flow_loss(latents, reference, objective)[0], latents)[0]
    alone = latents[:1].detach().requires_grad_()
    (expected,) = torch.autograd.grad(compute_flow_loss(alone, reference[:1], objective)[0], alone)
    assert torch.equal(together[:1], expected) and not together[1:].any()


def test_flow_of_a_reference_of_itself_costs_nothing_and_half_precision_keeps_its_dtype():
    pixels = (torch.rand(1, 3, 6, 8, 8) * 2 - 1).bfloat16()
    own = smooth_flow((pixels[0].transpose(0, 1).float() + 1) * 127.5)
    loss, gradient = compute_flow_loss_and_gradient(
        pixels, own, FlowComparison(None, smooth_flow, squared, 0, 4)
    )
    assert loss == 0 and gradient.dtype == torch.bfloat16


def test_frames_beyond_the_range_still_get_a_gradient():
    pixels = torch.full((1, 3, 5, 4, 4), 1.5)
    _, gradient = compute_flow_loss_and_gradient(
        pixels, torch.ones(4, 2, 4, 4), FlowComparison(None, smooth_flow, squared)
    )
    assert gradient.abs().sum() > 0


def test_a_reference_of_another_length_is_refused(objective, clip):
    latents, reference = clip
    with pytest.raises(ValueError, match="13 frames and 12 pairs.*has 11"):
        compute_flow_loss(latents, reference[:, 1:], objective)


@pytest.mark.parametrize("window, message", [
    (DecodeWindow(range(0, 1)), "hold no pair"),
    (DecodeWindow(range(3, 5)), "hold no pair"),
    (DecodeWindow(range(2, 2)), "hold no pair"),
    (DecodeWindow(range(2, 3), 2, ()), "Start at latent 1 or earlier"),
    (DecodeWindow(range(2, 3), 1), "from latent 1 needs a decoder state"),
    (DecodeWindow(range(2, 3), 0, ()), "must not have a decoder state"),
])  # fmt: skip
def test_a_window_that_cannot_be_compared_is_refused(objective, clip, window, message):
    with pytest.raises(ValueError, match=message):
        compute_flow_loss(*clip, objective, [window] * BATCH)
