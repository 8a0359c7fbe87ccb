"""Our decoder on the host's own video VAEs: the same pixels and the same gradient."""

import pytest
import torch
from random_vae import load_vae, load_vae_of_wan22
from random_wan import pack

SIDE = 2
"""Latents a side: 16 pixels, or 32."""


@pytest.fixture(scope="module", params=[load_vae, load_vae_of_wan22], ids=["WAN 2.1", "Wan 2.2"])
def net(tmp_path_factory, request):
    """The private copy that training decodes with, in float64."""
    with torch.inference_mode(False):
        vae = request.param(tmp_path_factory.mktemp("vae"))
        return pack("nodes.host.vae").copy_vae(vae, torch.device("cpu")).double()


@pytest.fixture(autouse=True)
def ordinary_tensors():
    with torch.inference_mode(False), torch.enable_grad():
        yield


def latents(count, channels):
    generator = torch.Generator().manual_seed(count)
    z = torch.randn(1, channels, count, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return z.requires_grad_()


def decoded_by_the_host(net, z):
    return net.decode(pack("smra_core.wan.latents").denormalize(z))


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("count, at_once", [(1, 1), (4, 2), (13, 13), (13, 1)])
def test_pixels_and_gradient_are_the_hosts(net, count, at_once, recompute):
    z = latents(count, net.z_dim)
    decoder, past, parts = pack("smra_core.decoding.wan_decoder").WanVideoDecoder.of(net, recompute), None, []
    for some in z.split(at_once, 2):
        part, past = decoder.step(some, past)
        parts.append(part)
    ours, theirs = torch.cat(parts, 2), decoded_by_the_host(net, z)
    assert theirs.shape[2] == 4 * count - 3
    assert relative(ours, theirs) < 1e-12
    pull = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, expected = (torch.autograd.grad(pixels, z, pull)[0] for pixels in (ours, theirs))
    assert expected.abs().amax((0, 1, 3, 4)).min() > 0 and relative(found, expected) < 1e-12


def smooth_flow(frames):
    """A stand-in flow net: differentiable everywhere, each pair by itself."""
    before, after = frames[:-1] / 100, frames[1:] / 100
    return torch.stack([torch.tanh(before[:, 0] * after[:, 1]), torch.sin(after[:, 2] + before[:, 1])], 1)


@pytest.mark.parametrize("at_once", [0, 1])
def test_a_flow_loss_reaches_the_latents_as_in_one_graph_through_the_host(net, at_once):
    gradients, z = pack("smra_core.decoding.flow_gradient"), latents(4, net.z_dim)
    side = pack("smra_core.wan.spec").find_latents(net.z_dim).stride * SIDE
    reference = torch.zeros(1, 12, 2, side, side, dtype=torch.float64)

    def squared(flow, reference):
        return ((flow - reference) ** 2).mean()

    decoder = pack("smra_core.decoding.wan_decoder").WanVideoDecoder.of(net)
    objective = gradients.FlowComparison(decoder, smooth_flow, squared, at_once)
    loss = gradients.compute_flow_loss(z, reference, objective)[0]
    frames = (decoded_by_the_host(net, z)[0].transpose(0, 1) + 1) * 127.5
    expected = squared(smooth_flow(frames), reference[0])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative(*(torch.autograd.grad(some, z)[0] for some in (loss, expected))) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_decoder_never_computes_in_float16_in_which_the_flow_gradient_is_zero(tmp_path, dtype):
    vae = load_vae(tmp_path)
    vae.vae_dtype = dtype
    net = pack("nodes.host.vae").copy_vae(vae, torch.device("cpu"))
    expected = torch.float32 if dtype == torch.float16 else dtype
    assert {value.dtype for value in net.decoder.parameters()} == {expected}
