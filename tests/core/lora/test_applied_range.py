"""A LoRA that was trained at a part of the noise levels is applied at these alone."""

import pytest
import torch
from toy_models import make_contexts

from smra_core.lora.adapter import LoraPair, init_lora
from smra_core.lora.applied_range import describe_applied, describe_gain, is_applied
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.plan import MOTION
from smra_core.lora.schedule import ScheduledLora, Strengths, TPoint, scheduled
from smra_core.wan.flow_matching import sampling_sigmas
from smra_core.wan.noise_range import NOISE_PRESETS, WHOLE, NoiseRange
from smra_core.wan.sampler import sample

MOTION_RANGE, HIGH, LOW = (
    NOISE_PRESETS[name] for name in ("motion", "high-noise expert", "low-noise expert")
)
STEPS, SHIFT = 20, 5.0
LEVELS = sampling_sigmas(STEPS, SHIFT).tolist()
"""Levels of ComfyUI's own graphs of Wan 2.2, which hand over after 10 steps at 0.8333."""
HALF = STEPS // 2


def count_applied(noise_range, sigmas):
    return sum(is_applied(noise_range, sigma, sigmas) for sigma in sigmas[:-1])


def test_in_a_whole_run_the_range_holds_by_the_noise_level():
    # 5 s / (1 + 4 s) >= 0.6 for s >= 0.2308, which is 16 of 20 steps; >= 0.875 for s >= 0.5833, 9 of them.
    assert count_applied(MOTION_RANGE, LEVELS) == 16
    assert count_applied(HIGH, LEVELS) == 9 and count_applied(LOW, LEVELS) == 11
    assert count_applied(WHOLE, LEVELS) == STEPS
    assert count_applied(NoiseRange(0.1, 0.2), LEVELS) == 0


@pytest.mark.parametrize("boundary", [5, HALF, 13])
def test_an_experts_lora_is_applied_in_all_steps_of_its_expert(boundary):
    """Wherever the graph hands over: at 0.9375, at 0.8333, or at 0.7292."""
    first, second = LEVELS[: boundary + 1], LEVELS[boundary:]
    assert count_applied(HIGH, first) == boundary
    assert count_applied(LOW, second) == STEPS - boundary


def test_an_experts_lora_is_off_on_the_other_expert():
    first, second = LEVELS[: HALF + 1], LEVELS[HALF:]
    assert count_applied(HIGH, second) == 0
    assert count_applied(LOW, first) == 1  # the step at 0.859, between the two hand-overs


def test_a_range_that_is_no_experts_is_cut_in_every_run():
    first, second = LEVELS[: HALF + 1], LEVELS[HALF:]
    assert count_applied(MOTION_RANGE, first) == HALF and count_applied(MOTION_RANGE, second) == 6
    assert count_applied(NoiseRange(0.875, 1.0), first) == 9


@pytest.mark.parametrize(
    ("purpose", "noise_range", "told"),
    [
        ("motion", MOTION_RANGE, True), ("motion", HIGH, True), ("motion", NoiseRange(0.7, 1.0), True),
        ("motion", LOW, False), ("motion", WHOLE, False), ("subject", HIGH, False),
    ],
)  # fmt: skip
def test_what_a_motion_gains_at_all_levels_is_told_where_it_was_measured(purpose, noise_range, told):
    sentence = describe_gain(purpose, noise_range, "--noise-range everywhere")
    assert bool(sentence) is told
    assert not told or sentence.startswith("On one model without experts --noise-range everywhere transfers")


def test_without_known_levels_the_noise_level_decides_and_rounding_does_not():
    assert is_applied(HIGH, 0.875 - 1e-6, []) and not is_applied(HIGH, 0.874, [])
    assert is_applied(LOW, 0.5, []) and not is_applied(LOW, 0.9, [])


def test_a_run_of_image_to_image_is_no_expert_that_it_does_not_reach():
    partial = sampling_sigmas(10, 1.0, 0.5).tolist()
    assert partial[0] == pytest.approx(0.5) and count_applied(HIGH, partial) == 0


def test_the_line_for_the_log_counts_the_steps():
    assert describe_applied(MOTION_RANGE, LEVELS) == (
        "a LoRA trained at the noise range motion 0.6 to 1.0 is applied in 16 of 20 steps, with strength 0 "
        "elsewhere"
    )


def test_outside_of_its_range_a_lora_changes_nothing(toy_denoiser):
    """Against a sampler that is written out: with the LoRA in the first steps, without after."""
    denoiser, generator = toy_denoiser(), torch.Generator().manual_seed(7)
    lora = {
        name: LoraPair(pair.a.detach(), torch.randn(pair.b.shape, generator=generator))
        for name, pair in init_lora(denoiser.spec, MOTION, 2, generator).items()
    }
    noise, sigmas = torch.randn(1, 16, 2, 4, 4, generator=generator), sampling_sigmas(10)
    context, negative = make_contexts()

    def run(lora_range, levels, start):
        one = ScheduledLora(lora, Strengths.from_value(1.0), lora_range)
        with scheduled(denoiser.linears(), [one], TPoint(), levels.tolist()) as set_strengths:
            return sample(denoiser, start, levels, context, negative, on_evaluation=set_strengths)

    ours = run(MOTION_RANGE, sigmas, noise)
    first = run(WHOLE, sigmas[:6], noise)  # the steps that start at 1, 0.9, 0.8, 0.7 and 0.6
    assert torch.equal(ours, sample(denoiser, first, sigmas[5:], context, negative))
    assert not torch.equal(ours, run(WHOLE, sigmas, noise))


def test_a_lora_with_a_range_is_not_constant():
    one = ScheduledLora({}, Strengths.from_value(1.0))
    assert one.is_constant() and not one._replace(noise_range=MOTION_RANGE).is_constant()
    assert one._replace(noise_range=MOTION_RANGE, strengths=Strengths.from_value(0.0)).is_constant()
    assert not ScheduledLora({}, Strengths(0.4, 0.8)).is_constant()


@pytest.mark.parametrize("text", ["", "whole", "garbage", "0.9 to 0.1", "motion 7 to 8"])
def test_a_range_that_cannot_be_read_is_the_whole_one(text):
    assert LoraMetadata(noise_range=text).get_noise_range() == WHOLE


def test_a_range_survives_the_metadata_of_a_file():
    written = LoraMetadata("motion", noise_range=str(HIGH)).to_file()
    assert LoraMetadata.from_file(written).get_noise_range() == HIGH
    assert written["modelspec.timestep_range"] == "875,1000"
