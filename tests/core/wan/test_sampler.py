import pytest
import torch
from toy_models import ExponentialField, make_contexts

from smra_core.wan.flow_matching import sampling_sigmas
from smra_core.wan.sampler import SamplingSettings, initial_noise, sample
from smra_core.wan.spec import LATENTS_21, LATENTS_22

SHAPE = (1, 16, 2, 4, 4)


def test_guidance_one_needs_no_negative(toy_denoiser):
    denoiser = toy_denoiser()
    noise, sigmas = torch.randn(SHAPE), sampling_sigmas(3)
    positive, negative = make_contexts()
    once = sample(denoiser, noise, sigmas, positive, negative, guidance=1.0)
    assert torch.equal(once, sample(denoiser, noise, sigmas, positive, -negative, guidance=1.0))


def test_guidance_extrapolates_from_negative_to_positive(toy_denoiser):
    denoiser = toy_denoiser()
    noise, sigmas = torch.randn(SHAPE), torch.tensor([1.0, 0.0])
    positive, negative = make_contexts()
    run = lambda context, guidance, other: sample(denoiser, noise, sigmas, context, other, guidance)  # noqa: E731
    plain, opposite = run(positive, 1.0, negative), run(negative, 1.0, positive)
    torch.testing.assert_close(
        run(positive, 3.0, negative), opposite + 3 * (plain - opposite), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("sampler, tolerance", [("euler", 0.3), ("heun", 0.02)])
def test_samplers_follow_a_field_with_a_known_end(sampler, tolerance):
    start = torch.ones(1, 1)
    end = sample(ExponentialField(), start, torch.linspace(1, 0, 6), start, start, 1.0, sampler=sampler)
    assert end.item() == pytest.approx(2.718281828**-1, rel=tolerance)


def test_noise_of_a_video_depends_on_its_own_seed_alone():
    settings = SamplingSettings(width=64, height=64, frames=5, seed=3)
    three, one = (
        initial_noise(settings, LATENTS_21, 3),
        initial_noise(SamplingSettings(width=64, height=64, frames=5, seed=5), LATENTS_21),
    )
    assert three.shape == (3, 16, 2, 8, 8)
    assert torch.equal(three[2], one[0])
    assert initial_noise(settings, LATENTS_22).shape == (1, 48, 2, 4, 4)


@pytest.mark.parametrize("changes", [{"width": 830}, {"frames": 50}, {"sampler": "ddim"}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ValueError, match="Use|give"):
        SamplingSettings(**changes)
