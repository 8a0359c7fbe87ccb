import pytest
import torch
from random_vaes import SPACES, random_vae
from toy_models import smooth_flow, squared

from smra_core.decoding.flow_gradient import FlowComparison, compute_flow_loss
from smra_core.decoding.wan_decoder import WanVideoDecoder
from smra_core.decoding.windows import split_into_windows, spread_evenly, take_whole_clip, warm_windows

LATENTS, PAIRS = 6, 20


@pytest.mark.parametrize("latents, size, expected", [
    (13, 3, [range(1, 4), range(4, 7), range(7, 10), range(10, 13)]),
    (5, 3, [range(1, 3), range(3, 5)]),
    (6, 2, [range(1, 2), range(2, 4), range(4, 6)]),
    (3, 9, [range(1, 3)]),
])  # fmt: skip
def test_every_latent_that_ends_a_pair_is_in_one_window(latents, size, expected):
    assert split_into_windows(latents, size) == expected


@pytest.mark.parametrize("first, count, expected", [
    (1, 1, [1]), (0, 2, [0, 2]), (3, 2, [3, 1]), (2, 3, [2, 3, 0]), (1, 9, [1, 2, 3, 0]),
])  # fmt: skip
def test_windows_of_one_step_are_different_and_spread_over_the_clip(first, count, expected):
    assert spread_evenly([0, 1, 2, 3], first, count) == expected


@pytest.fixture(scope="module", params=SPACES, ids=lambda space: space.name)
def space(request):
    return request.param


@pytest.fixture(scope="module")
def decoder(space):
    return small_decoder(space)


def small_decoder(space):
    return WanVideoDecoder.of(random_vae(space).double())


def clip(space):
    torch.manual_seed(7)
    reference, error = torch.randn(2, 1, space.channels, LATENTS, 1, 2, dtype=torch.float64)
    predicted = (reference + 0.1 * error).requires_grad_()
    return reference[0], predicted, torch.randn(1, PAIRS, 2, space.stride, 2 * space.stride).double()


def mean_over(windows, decoder, predicted, flow, weight_px=None):
    objective = FlowComparison(decoder, smooth_flow, squared)
    losses = [compute_flow_loss(predicted, flow, objective, [window], weight_px) for window in windows]
    loss = torch.stack(losses).mean()
    return loss, torch.autograd.grad(loss, predicted)[0]


@pytest.mark.parametrize("size, weighted", [(2, True), (3, False)])
def test_windows_with_all_of_the_past_average_to_the_whole_clip(decoder, space, size, weighted):
    reference, predicted, flow = clip(space)
    weight_px = torch.rand_like(flow[:, :, :1]) if weighted else None
    loss, gradient = mean_over(take_whole_clip(LATENTS), decoder, predicted, flow, weight_px)
    windows = warm_windows(reference, decoder, size, warmup=LATENTS)
    assert {window.start for window in windows} == {0} and len(windows) == -(-5 // size)
    mean, average = mean_over(windows, decoder, predicted, flow, weight_px)
    torch.testing.assert_close(mean, loss, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(average, gradient, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("context", [1, 2, 4])
def test_the_reference_itself_is_decoded_as_in_the_whole_clip_however_little_context(decoder, space, context):
    reference, _, _ = clip(space)
    pixels = torch.cat([*decoder.stream(reference[None])], 2)
    for window in warm_windows(reference, decoder, 1, context)[context:]:
        latents = reference[None, :, window.start : window.latents.stop]
        part, _ = decoder.step(latents, window.state, window.small_stages_only)
        end = 4 * (window.latents.stop - 1) + 1
        assert window.small_stages_only == context // 2
        torch.testing.assert_close(part, pixels[:, :, end - part.shape[2] : end])


def time_aligned(decoder):
    """As a trained decoder is: what came before is 2 % of its kernels' energy."""
    for module in {id(m): m for block in decoder.blocks for m in convs_of(block)}.values():
        module.weight[:, :, :-1] *= 0.1
    return decoder


def convs_of(part):
    if isinstance(part, torch.nn.Module):
        return [part] if getattr(part, "weight", torch.empty(0)).ndim == 5 else []
    parts = part if isinstance(part, tuple) else vars(part).values() if hasattr(part, "num_states") else ()
    return [conv for inner in parts for conv in convs_of(inner)]


def test_started_from_the_reference_two_latents_of_context_leave_little_error(space):
    reference, predicted, flow = clip(space)
    aligned = time_aligned(small_decoder(space))
    _, exact = mean_over(take_whole_clip(LATENTS), aligned, predicted, flow)
    warm = warm_windows(reference, aligned, 3, warmup=2)
    strange = warm_windows(0 * reference, aligned, 3, warmup=2)
    strange = [kept._replace(state=other.state) for kept, other in zip(warm, strange, strict=True)]
    errors = [
        ((mean_over(some, aligned, predicted, flow)[1] - exact).norm() / exact.norm()).item()
        for some in (warm, strange)
    ]
    assert errors[0] < 0.05 and errors[0] < 0.5 * errors[1], errors


def test_states_wait_on_the_cpu(decoder, space):
    first, second = warm_windows(clip(space)[0], decoder, 3, warmup=1)
    assert first.state is None and {tensor.device.type for tensor in second.state} == {"cpu"}
