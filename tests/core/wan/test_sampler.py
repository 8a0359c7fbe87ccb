from fractions import Fraction

import pytest
import torch

from smra_core.lora.adapter import LoraPair, init_lora
from smra_core.lora.plan import MOTION, SUBJECT, Strengths, TPointSchedule
from smra_core.wan.flow_matching import sampling_sigmas
from smra_core.wan.interfaces import Prediction
from smra_core.wan.sampler import SamplingSettings, ScheduledLora, initial_noise, sample

SHAPE, TEXT = (1, 16, 2, 4, 4), 6


def contexts():
    torch.manual_seed(0)
    return torch.randn(1, 3, TEXT), torch.randn(1, 3, TEXT)


def loud_lora(denoiser, plan):
    generator = torch.Generator().manual_seed(7)
    return {
        name: LoraPair(pair.a.detach(), torch.randn(pair.b.shape, generator=generator))
        for name, pair in init_lora(denoiser.spec, plan, 2, generator).items()
    }


def exact_levels(steps, shift, denoise):
    """Noise levels of a run as fractions; a partial run is the tail of a longer one."""
    total = max(steps, round(steps / denoise))
    shares = [1 - Fraction(step, total) for step in range(total - steps, total + 1)]
    return [shift * share / (1 + (shift - 1) * share) for share in shares]


def first_late_step(levels, t_point):
    """The switch falls on the level nearest to T_point, never on the end nor on the start from pure noise."""
    if t_point >= levels[0]:
        return 0
    places = range(1 if levels[0] == 1 else 0, len(levels) - 1)
    return min(places, key=lambda place: abs(levels[place] - t_point))


def evaluated(steps, sampler):
    """Which level each evaluation of the model is at."""
    if sampler == "euler":
        return list(range(steps))
    return [0] + [place for place in range(1, steps) for _ in "ab"]


@pytest.mark.parametrize("t_point", [Fraction(7, 10), Fraction(9, 10)], ids=str)
@pytest.mark.parametrize("denoise", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("shift", [1, 3, 5, 8])
@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_every_evaluation_has_the_strengths_of_its_sigma(steps, shift, sampler, denoise, t_point):
    loras = [ScheduledLora({}, Strengths(0.4, 0.8)), ScheduledLora({}, Strengths.constant(1.0))]
    seen = []
    start = torch.ones(1, 1)
    sample(
        Field(), start, sampling_sigmas(steps, shift, denoise), start, start, 1.0, loras,
        TPointSchedule(float(t_point)), sampler, on_evaluation=seen.append,
    )  # fmt: skip
    levels, places = exact_levels(steps, shift, denoise), evaluated(steps, sampler)
    late = first_late_step(levels, t_point)
    expected = [(0.8, 1.0) if place >= late else (0.4, 1.0) for place in places]
    assert [evaluation.strengths for evaluation in seen] == expected
    assert [evaluation.sigma for evaluation in seen] == pytest.approx([float(levels[p]) for p in places])


@pytest.mark.parametrize("steps, shift, late", [(50, 1, 15), (20, 1, 6), (8, 1, 2), (4, 1, 1), (50, 8, 39)])
def test_the_first_late_step_on_paper(steps, shift, late):
    assert first_late_step(exact_levels(steps, shift, 1.0), Fraction(7, 10)) == late


class Field:
    """A model without linears, whose field dx/dsigma = x ends at x(0) = x(1) / e."""

    def linears(self):
        return {}

    def velocity(self, noisy, sigma, context, tap=None):
        return Prediction(noisy, None)


def test_the_strengths_given_are_those_the_model_computes_with(toy_denoiser):
    denoiser = toy_denoiser()
    noise, sigmas = torch.randn(SHAPE), sampling_sigmas(2)
    lora = loud_lora(denoiser, SUBJECT)
    switched = sample(denoiser, noise, sigmas, *contexts(), loras=[ScheduledLora(lora, Strengths(0.3, 0.6))])
    by_hand = noise
    for step, strength in enumerate((0.3, 0.6)):  # T_point 0.7 lies nearest to the second level, 0.5
        constant = [ScheduledLora(lora, Strengths.constant(strength))]
        by_hand = sample(denoiser, by_hand, sigmas[step : step + 2], *contexts(), loras=constant)
    assert torch.equal(switched, by_hand)


def test_strengths_zero_give_the_base_bit_for_bit(toy_denoiser):
    denoiser = toy_denoiser()
    noise, sigmas = torch.randn(SHAPE), sampling_sigmas(4)
    off = [ScheduledLora(loud_lora(denoiser, plan), Strengths.constant(0.0)) for plan in (SUBJECT, MOTION)]
    base = sample(denoiser, noise, sigmas, *contexts())
    assert torch.equal(base, sample(denoiser, noise, sigmas, *contexts(), loras=off))
    on = [ScheduledLora(lora, Strengths(0.0, 0.5)) for lora, _ in off]
    assert not torch.equal(base, sample(denoiser, noise, sigmas, *contexts(), loras=on))


def test_guidance_one_needs_no_negative(toy_denoiser):
    denoiser = toy_denoiser()
    noise, sigmas = torch.randn(SHAPE), sampling_sigmas(3)
    positive, negative = contexts()
    once = sample(denoiser, noise, sigmas, positive, negative, guidance=1.0)
    assert torch.equal(once, sample(denoiser, noise, sigmas, positive, -negative, guidance=1.0))


def test_guidance_extrapolates_from_negative_to_positive(toy_denoiser):
    denoiser = toy_denoiser()
    noise, sigmas = torch.randn(SHAPE), torch.tensor([1.0, 0.0])
    positive, negative = contexts()
    run = lambda context, guidance, other: sample(denoiser, noise, sigmas, context, other, guidance)  # noqa: E731
    plain, opposite = run(positive, 1.0, negative), run(negative, 1.0, positive)
    torch.testing.assert_close(
        run(positive, 3.0, negative), opposite + 3 * (plain - opposite), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("sampler, tolerance", [("euler", 0.3), ("heun", 0.02)])
def test_samplers_follow_a_field_with_a_known_end(sampler, tolerance):
    start = torch.ones(1, 1)
    end = sample(Field(), start, torch.linspace(1, 0, 6), start, start, 1.0, sampler=sampler)
    assert end.item() == pytest.approx(2.718281828**-1, rel=tolerance)


def test_the_model_is_left_as_found_when_sampling_is_cancelled(toy_denoiser):
    denoiser = toy_denoiser()

    def cancel(step, steps):
        raise KeyboardInterrupt

    loras = [ScheduledLora(loud_lora(denoiser, SUBJECT), Strengths(0.4, 0.8))]
    with pytest.raises(KeyboardInterrupt):
        sample(denoiser, torch.randn(SHAPE), sampling_sigmas(4), *contexts(), loras=loras, on_step=cancel)
    assert all("forward" not in module.__dict__ for module in denoiser.linears().values())


def test_noise_of_a_video_depends_on_its_own_seed_alone():
    settings = SamplingSettings(width=64, height=64, frames=5, seed=3)
    three, one = (
        initial_noise(settings, 3),
        initial_noise(SamplingSettings(width=64, height=64, frames=5, seed=5)),
    )
    assert three.shape == (3, 16, 2, 8, 8)
    assert torch.equal(three[2], one[0])


@pytest.mark.parametrize("changes", [{"width": 830}, {"frames": 50}, {"sampler": "ddim"}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ValueError, match="Use|give"):
        SamplingSettings(**changes)
