"""ComfyUI's regional prompts beside the loader: each region has its prompt, and all have the LoRAs."""

import pytest
import torch
from random_wan import GUIDANCE, LATENT, STEPS, TEXT_DIM, TEXT_TOKENS, difference, reference
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule, TPoint

EXACT = 2e-4
PIXELS, LATENTS = 8 * LATENT[-1], LATENT[2]


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample_regions(model, masks):
    """Latents of a run in which each mask `M H W` has a prompt of its own."""
    import comfy.sample

    import nodes

    noise, prompts = draw(*LATENT, seed=3), draw(3, 1, TEXT_TOKENS, TEXT_DIM, seed=4)
    regions = [
        nodes.ConditioningSetMask().append([[prompt, {}]], mask, "default", 1.0)[0][0]
        for prompt, mask in zip(prompts, masks, strict=False)
    ]
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, STEPS, GUIDANCE, "euler", "simple", regions, [[prompts[2], {}]],
            torch.zeros(LATENT), disable_pbar=True, seed=7,
        )  # fmt: skip


@pytest.mark.parametrize("count", [1, LATENTS], ids=["one mask", "a mask for each latent"])
def test_loras_act_in_every_region_of_a_run_that_switches(model, loras, count):
    left = torch.zeros(count, PIXELS, PIXELS)
    for number in range(count):
        left[number, :, : PIXELS // 2 + 8 * number] = 1
    strengths = Strengths(0.4, 0.8), Strengths.from_value(1.0)
    scheduled = [
        ScheduledLora({name: LoraPair(a, b) for name, (a, b) in factors.items()}, one)
        for factors, one in zip(loras, strengths, strict=True)
    ]
    ours = sample_regions(apply_loras(model, scheduled, StrengthSchedule()).model, [left, 1 - left])
    # Of this run's levels 0.7 is the nearest to T_point.
    (subject, motion), late_below = loras, TPoint().sigma + 0.01
    written = reference(model, [(subject, 0.4, 0.8), (motion, 1.0, 1.0)], late_below)
    assert difference(ours, sample_regions(written, [left, 1 - left])) < EXACT
    whole = sample_regions(written, [torch.ones_like(left)])
    assert difference(ours, whole) > 0.1  # the regions make a difference
