"""Noise ranges: their texts, the levels drawn from them, and weights of mean 1 over them."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from smra_core.training.mora import flow_weight
from smra_core.training.motion_settings import CLEAN_BELOW, MotionSettings
from smra_core.wan.flow_matching import (
    sample_training_sigma,
    shift_sigma,
    spread_over_range,
    unshift_sigma,
    velocity_weight,
)
from smra_core.wan.noise_range import NOISE_PRESETS, WHOLE, NoiseRange
from smra_core.wan.spec import WAN_14B

SHIFTS = [1.0, 3.0, 5.0, 0.5]
RANGES = [*NOISE_PRESETS.values(), NoiseRange(0.2, 0.35), NoiseRange(0.85, 0.95)]
CELLS = 20_000
"""Number of cells of a numerical integral over a range."""


@pytest.mark.parametrize("noise_range", RANGES, ids=str)
def test_a_range_is_read_from_its_own_text(noise_range):
    assert NoiseRange.parse(str(noise_range)) == noise_range


@pytest.mark.parametrize(
    "text, low, high, preset",
    [
        ("whole", 0, 1, "whole"),
        ("0-1", 0, 1, "whole"),
        ("high-noise expert", 0.875, 1, "high-noise expert"),
        ("high-noise-expert", 0.875, 1, "high-noise expert"),
        ("Low_Noise_Expert", 0, 0.875, "low-noise expert"),
        ("low-noise expert 0 to 0.9", 0, 0.9, "low-noise expert"),
        ("motion", 0.6, 1, "motion"),
        ("0.25,0.5", 0.25, 0.5, ""),
        (" 1e-05 to 0.5 ", 1e-5, 0.5, ""),
    ],
)
def test_names_and_numbers_are_read(text, low, high, preset):
    assert NoiseRange.parse(text) == NoiseRange(low, high, preset)


@pytest.mark.parametrize(
    "text", ["", "high", "0.5", "motions", "0.5-0.5", "0.9-0.1", "0.5-1.2", "-0.1-1", "a-b"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="[Nn]oise range"):
        NoiseRange.parse(text)


def test_the_experts_of_text_to_video_hand_over_at_0_875():
    high, low = (NOISE_PRESETS[f"{expert}-noise expert"].fit_to(WAN_14B) for expert in ("high", "low"))
    assert (high.low, high.high, high.expert, high.timesteps) == (0.875, 1, "high", (875, 1000))
    assert (low.low, low.high, low.expert, low.timesteps) == (0, 0.875, "low", (0, 875))
    i2v = WAN_14B.as_variant("WAN21", 36)
    assert NOISE_PRESETS["high-noise expert"].fit_to(i2v).low == 0.9
    assert NOISE_PRESETS["low-noise expert"].fit_to(i2v).high == 0.9
    assert NOISE_PRESETS["high-noise expert"].fit_to(WAN_14B.as_variant("WAN21_Vace", 16)).low == 0.875
    assert WHOLE.expert is None and NOISE_PRESETS["motion"].fit_to(WAN_14B) == NOISE_PRESETS["motion"]


@pytest.mark.parametrize("shift", SHIFTS)
def test_unshift_is_the_inverse_of_shift(shift):
    sigma = torch.linspace(0, 1, 7, dtype=torch.float64)
    back = [unshift_sigma(level, shift) for level in shift_sigma(sigma, shift).tolist()]
    assert back == pytest.approx(sigma.tolist(), abs=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_whole_range_draws_what_it_always_drew(shift):
    draw = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    uniform = 1 - torch.rand(1000, generator=draw(3))
    assert torch.equal(
        sample_training_sigma(1000, draw(3), shift, WHOLE), shift_sigma(uniform, shift).clamp(0, 1)
    )


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("noise_range", RANGES, ids=str)
def test_draws_fill_the_range_with_the_density_of_the_shift(noise_range, shift):
    """Equally many draws lie in each quarter of the range's shares."""
    sigma = sample_training_sigma(20_000, torch.Generator().manual_seed(0), shift, noise_range).double()
    assert noise_range.low - 1e-7 <= sigma.min() and sigma.max() <= noise_range.high + 1e-7
    edges = spread_over_range(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), noise_range, shift)
    counts = torch.bincount(torch.bucketize(sigma, edges), minlength=4) / len(sigma)
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.015)


def integrate_mean(weight, noise_range, shift):
    """Integrate weight times density over sigma; the density is the derivative of the inverse shift."""
    width = (noise_range.high - noise_range.low) / CELLS
    sigma = noise_range.low + width * (np.arange(CELLS) + 0.5)
    density = shift / (shift - (shift - 1) * sigma) ** 2
    return float((weight(torch.from_numpy(sigma)).numpy() * density).sum() / density.sum())


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("noise_range", RANGES, ids=str)
def test_the_weights_of_the_losses_have_mean_1_over_the_range(noise_range, shift):
    # The weights are scaled by a mean over 1000 levels, which is off by up to 1 / 1000.
    velocity = integrate_mean(lambda s: velocity_weight(s, shift, noise_range), noise_range, shift)
    assert velocity == pytest.approx(1, abs=2e-3)
    for kind in ("none", "clean"):
        weight = partial(flow_weight, kind=kind, shift=shift, noise_range=noise_range)
        flow = integrate_mean(weight, noise_range, shift)
        # The step of `clean` at 0.9 falls between two of the levels.
        assert flow == pytest.approx(1, abs=1e-2 if kind == "clean" else 1e-6)


@pytest.mark.parametrize("noise_range", RANGES[:4], ids=str)
def test_the_velocity_weight_keeps_its_shape_in_a_range(noise_range):
    sigma = torch.linspace(noise_range.low, noise_range.high, 6, dtype=torch.float64)[1:-1]
    ratio = velocity_weight(sigma, 1.0, noise_range) / velocity_weight(sigma)
    torch.testing.assert_close(ratio, ratio[:1].expand(4))
    assert velocity_weight(torch.ones(1), 1.0, noise_range).item() == pytest.approx(0, abs=1e-6)


def test_a_flow_loss_that_would_count_nothing_is_refused():
    with pytest.raises(ValueError, match=f"no noise level above {CLEAN_BELOW}.*Choose flow_weight 'none'"):
        MotionSettings(flow_weight="clean", noise_range=NoiseRange(0.9, 1))
    assert math.isfinite(flow_weight(torch.tensor([0.88]), "clean", 1.0, NoiseRange(0.87, 1)).item())
