import pytest
import torch
from random_vaes import random_vae
from toy_models import random_lora, smooth_flow

from smra_core.decoding.flow_gradient import FlowComparison
from smra_core.decoding.wan_decoder import WanVideoDecoder
from smra_core.decoding.windows import DecodeWindow, warm_windows
from smra_core.training.mora import MotionSample, flow_alignment_loss
from smra_core.training.window_gradient import WindowGradient, measure_window_gradients, render_gradients
from smra_core.wan.spec import LATENTS_21

LATENTS, HEIGHT, WIDTH, TEXT = 4, 2, 2, 6
PAIRS = 4 * (LATENTS - 1)


@pytest.fixture(scope="module")
def decoder():
    return WanVideoDecoder.of(random_vae(LATENTS_21).double())


@pytest.fixture
def sample():
    torch.manual_seed(4)
    latents = torch.randn(16, LATENTS, HEIGHT, WIDTH, dtype=torch.float64)
    context = torch.randn(3, TEXT, dtype=torch.float64)
    return MotionSample("clip", latents, context, torch.randn(PAIRS, 2, 16, 16, dtype=torch.float64))


def measure(toy_denoiser, decoder, sample, windows, at_once=0):
    denoiser = toy_denoiser().double()
    lora = random_lora(denoiser.spec, std=0.1, dtype=torch.float64)
    comparison = FlowComparison(decoder, smooth_flow, flow_alignment_loss, at_once)
    return measure_window_gradients(denoiser, lora, sample, comparison, windows, sigmas=(0.4, 0.8))


def test_windows_that_reach_back_to_the_start_average_to_the_gradient_of_the_clip(
    toy_denoiser, decoder, sample
):
    windows = {LATENTS: warm_windows(sample.latents, decoder, 1, LATENTS)}
    (row,) = measure(toy_denoiser, decoder, sample, windows)
    assert (row.context, row.windows) == (LATENTS, LATENTS - 1)
    assert row.all_cosine == pytest.approx(1) and row.all_norm == pytest.approx(1)
    # One window shows a part of the pairs: it is another gradient, and a longer one.
    assert row.one_cosine < 0.99 and row.one_norm > 1.01


def test_a_window_of_the_whole_clip_has_its_gradient_in_one_graph_and_in_chunks(
    toy_denoiser, decoder, sample
):
    for at_once in (0, 1):
        (row,) = measure(toy_denoiser, decoder, sample, {1: [DecodeWindow(range(LATENTS))]}, at_once)
        assert row[2:] == pytest.approx((1, 1, 1, 1))


def test_less_context_is_further_from_the_whole_clip(toy_denoiser, decoder, sample):
    windows = {context: warm_windows(sample.latents, decoder, 1, context) for context in (1, LATENTS)}
    short, whole = measure(toy_denoiser, decoder, sample, windows)
    assert short.all_cosine < whole.all_cosine


def test_the_table_has_a_row_for_each_context():
    rows = render_gradients([WindowGradient(2, 4, 0.5, 2.0, 0.98, 1.02)]).splitlines()
    assert rows[1].split() == ["context", "cosine", "norm", "cosine", "norm"]
    assert rows[2].split() == ["2", "0.500", "2.00", "0.980", "1.02"]
