"""LoRAs whose strengths follow the noise level, in a whole sampling run."""

from fractions import Fraction

import pytest
import torch
from toy_models import ExponentialField, make_contexts

from smra_core.lora.adapter import LoraPair, init_lora
from smra_core.lora.plan import MOTION, SUBJECT
from smra_core.lora.schedule import ScheduledLora, Strengths, TPoint, choose_strength, scheduled
from smra_core.wan.flow_matching import sampling_sigmas
from smra_core.wan.sampler import sample

SHAPE = (1, 16, 2, 4, 4)


def sample_with(denoiser, start, sigmas, context, negative, loras, **options):
    """Sample with LoRAs that switch at the paper's T_point."""
    with scheduled(denoiser.linears(), loras, TPoint(), sigmas.tolist()) as set_strengths:
        return sample(denoiser, start, sigmas, context, negative, on_evaluation=set_strengths, **options)


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
    """Return the noise level of each evaluation of the model."""
    if sampler == "euler":
        return list(range(steps))
    return [0] + [place for place in range(1, steps) for _ in "ab"]


@pytest.mark.parametrize("t_point", [Fraction(7, 10), Fraction(9, 10)], ids=str)
@pytest.mark.parametrize("denoise", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("shift", [1, 3, 5, 8])
@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_every_evaluation_has_the_strengths_of_its_sigma(steps, shift, sampler, denoise, t_point):
    seen, strengths = [], []
    start, sigmas = torch.ones(1, 1), sampling_sigmas(steps, shift, denoise)
    boundary = TPoint(float(t_point)).boundary(sigmas.tolist())

    def record(sigma):
        seen.append(sigma)
        strengths.append(choose_strength(Strengths(0.4, 0.8), sigma, boundary))

    sample(ExponentialField(), start, sigmas, start, start, 1.0, sampler, on_evaluation=record)
    levels, places = exact_levels(steps, shift, denoise), evaluated(steps, sampler)
    late = first_late_step(levels, t_point)
    assert strengths == [0.8 if place >= late else 0.4 for place in places]
    assert seen == pytest.approx([float(levels[p]) for p in places])


def test_a_scheduled_lora_is_as_strong_as_its_schedule_says(toy_denoiser):
    """The LoRA of one linear, read off the linear's own output at every evaluation."""
    denoiser = toy_denoiser()
    name, module = next(iter(denoiser.linears().items()))
    pair = LoraPair(torch.ones(1, module.in_features), torch.ones(module.out_features, 1))
    x = torch.ones(1, module.in_features)
    base = module(x)
    levels = sampling_sigmas(4).tolist()
    with scheduled(
        denoiser.linears(), [ScheduledLora({name: pair}, Strengths(0.25, 0.5))], TPoint(0.5), levels
    ) as at:
        found = []
        for sigma in levels[:-1]:
            at(sigma)
            found.append(((module(x) - base) / module.in_features)[0, 0].item())
    assert found == pytest.approx([0.25, 0.25, 0.5, 0.5], abs=1e-5)
    assert torch.equal(module(x), base)


@pytest.mark.parametrize("steps, shift, late", [(50, 1, 15), (20, 1, 6), (8, 1, 2), (4, 1, 1), (50, 8, 39)])
def test_the_first_late_step_on_paper(steps, shift, late):
    assert first_late_step(exact_levels(steps, shift, 1.0), Fraction(7, 10)) == late


def test_the_strengths_given_are_those_the_model_computes_with(toy_denoiser):
    denoiser = toy_denoiser()
    noise, sigmas = torch.randn(SHAPE), sampling_sigmas(2)
    lora = loud_lora(denoiser, SUBJECT)
    switched = sample_with(
        denoiser, noise, sigmas, *make_contexts(), loras=[ScheduledLora(lora, Strengths(0.3, 0.6))]
    )
    by_hand = noise
    for step, strength in enumerate((0.3, 0.6)):  # T_point 0.7 lies nearest to the second level, 0.5
        constant = [ScheduledLora(lora, Strengths.from_value(strength))]
        by_hand = sample_with(denoiser, by_hand, sigmas[step : step + 2], *make_contexts(), loras=constant)
    assert torch.equal(switched, by_hand)


def test_strengths_zero_give_the_base_bit_for_bit(toy_denoiser):
    denoiser = toy_denoiser()
    noise, sigmas = torch.randn(SHAPE), sampling_sigmas(4)
    off = [ScheduledLora(loud_lora(denoiser, plan), Strengths.from_value(0.0)) for plan in (SUBJECT, MOTION)]
    base = sample(denoiser, noise, sigmas, *make_contexts())
    assert torch.equal(base, sample_with(denoiser, noise, sigmas, *make_contexts(), loras=off))
    on = [ScheduledLora(one.lora, Strengths(0.0, 0.5)) for one in off]
    assert not torch.equal(base, sample_with(denoiser, noise, sigmas, *make_contexts(), loras=on))


def test_the_model_is_left_as_found_when_sampling_is_canceled(toy_denoiser):
    denoiser = toy_denoiser()

    def cancel(step, steps):
        raise KeyboardInterrupt

    loras = [ScheduledLora(loud_lora(denoiser, SUBJECT), Strengths(0.4, 0.8))]
    with pytest.raises(KeyboardInterrupt):
        sample_with(
            denoiser, torch.randn(SHAPE), sampling_sigmas(4), *make_contexts(), loras=loras, on_step=cancel
        )
    assert all("forward" not in module.__dict__ for module in denoiser.linears().values())
