import math

import numpy as np
import pytest
import torch

from smra_core.wan.flow_matching import (
    add_noise,
    sample_training_sigma,
    sampling_sigmas,
    shift_sigma,
    velocity_target,
    velocity_weight,
    x0_from_velocity,
)

BATCH, SHAPE = 3, (16, 2, 4, 4)


def test_the_path_runs_from_clean_to_noise_and_back():
    x0, noise = torch.randn(2, BATCH, *SHAPE, dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    noisy = add_noise(x0, noise, sigma)
    assert torch.equal(noisy[0], x0[0]) and torch.equal(noisy[2], noise[2])
    recovered = x0_from_velocity(noisy, velocity_target(x0, noise), sigma)
    torch.testing.assert_close(recovered, x0, rtol=0, atol=1e-12)


def test_the_velocity_target_is_the_slope_of_the_path():
    x0, noise = torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    at = lambda s: add_noise(x0, noise, torch.tensor([s], dtype=torch.float64))  # noqa: E731
    slope = (at(0.5 + 1e-6) - at(0.5 - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, velocity_target(x0, noise), rtol=0, atol=1e-8)


def test_shift_maps_the_papers_step_15_as_published():
    shifted = [shift_sigma(torch.tensor(0.7, dtype=torch.float64), shift).item() for shift in (1, 3, 5, 8)]
    assert shifted == pytest.approx([0.7, 0.875, 0.92105, 0.94915], abs=1e-5)


def test_training_sigmas_are_uniform_reproducible_and_never_zero():
    draw = lambda: sample_training_sigma(20000, torch.Generator().manual_seed(1))  # noqa: E731
    sigma = draw()
    assert torch.equal(sigma, draw())
    assert 0 < sigma.min() and sigma.max() <= 1
    assert sigma.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (sigma < 0.25).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_the_velocity_weight_has_the_values_of_the_release_at_shift_1():
    sigma = torch.tensor([1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64)
    expected = [0.0, 0.24, 0.48, 0.92, 1.27, 1.58, 1.27, 0.48]
    assert velocity_weight(sigma).tolist() == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("shift", [1, 3, 5])
def test_the_velocity_weight_equals_numpy(shift):
    share = np.linspace(1, 0, 1000, endpoint=False)
    timesteps = 1000 * shift * share / (1 + (shift - 1) * share)
    bell = np.exp(-2 * ((timesteps - 500) / 1000) ** 2)
    weights = (bell - bell.min()) * 1000 / (bell - bell.min()).sum()
    ours = velocity_weight(torch.from_numpy(timesteps / 1000).float(), shift)
    np.testing.assert_allclose(ours, weights, atol=1e-5)


def test_the_velocity_weight_has_mean_1():
    sigma = (torch.arange(1000, 0, -1, dtype=torch.float64)) / 1000
    assert velocity_weight(sigma).mean().item() == pytest.approx(1.0, abs=1e-9)


def test_sampling_sigmas_of_the_papers_run():
    sigmas = sampling_sigmas(50)
    assert len(sigmas) == 51 and sigmas[0] == 1 and sigmas[-1] == 0
    assert sigmas[15].item() == pytest.approx(0.70, abs=1e-6)


def test_partial_denoise_is_the_tail_of_the_longer_run():
    assert torch.equal(sampling_sigmas(10, 5.0, 0.5), sampling_sigmas(20, 5.0)[10:])


@pytest.mark.parametrize("steps, denoise", [(0, 1.0), (5, 0.0), (5, 1.5), (5, math.nan)])
def test_impossible_runs_are_refused(steps, denoise):
    with pytest.raises(ValueError, match="steps >= 1"):
        sampling_sigmas(steps, denoise=denoise)
