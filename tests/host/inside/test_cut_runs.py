"""Where the host's own schedules switch, in one run and in one that is cut in two."""

import pytest
import random_wan
import torch
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import (
    ScheduledLora,
    Strengths,
    StrengthSchedule,
    TPoint,
    count_early_steps,
)

SCHEDULERS = ("simple", "normal", "beta", "sgm_uniform")
FEW = 6


def levels(shift: float, scheduler: str, steps: int) -> list[float]:
    import comfy.model_sampling
    import comfy.samplers

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = Sampling()
    sampling.set_parameters(shift=shift, multiplier=1000)
    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps).tolist()


@pytest.mark.parametrize("steps", [8, 20, 50])
def test_the_simple_scheduler_switches_at_the_step_that_was_asked_for(steps):
    """Its levels come from a table of 1000, a little beside the exact ones, at every shift."""
    asked = list(range(1, steps))
    found = {}
    for shift in range(1, 18):
        run = levels(shift, "simple", steps)
        found[shift] = [count_early_steps(TPoint.from_step(step, steps, shift), run) for step in asked]
    assert found == dict.fromkeys(range(1, 18), asked)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_two_samplers_cut_anywhere_have_the_strengths_of_one(scheduler, shift):
    run, t_point = levels(shift, scheduler, 20), TPoint(0.7)

    def late(part):
        return [sigma <= t_point.boundary(part) for sigma in part[:-1]]

    whole = late(run)
    assert set(whole) == {False, True}
    cut_runs = [late(run[: cut + 1]) + late(run[cut:]) for cut in range(1, 20)]
    assert cut_runs == [whole] * 19


@pytest.mark.parametrize("cut", range(1, FEW))
def test_two_real_samplers_cut_anywhere_make_the_latents_of_one(model, loras, cut):
    lora = {name: LoraPair(a, b) for name, (a, b) in loras[0].items()}
    ours = apply_loras(model, [ScheduledLora(lora, Strengths(0.4, 0.8))], StrengthSchedule(0.7)).model
    one = random_wan.sample(ours, steps=FEW)
    first = random_wan.sample(ours, steps=FEW, start_step=0, last_step=cut, force_full_denoise=False)
    second = random_wan.sample_on(
        ours, first, steps=FEW, start_step=cut, last_step=FEW, force_full_denoise=True
    )
    assert random_wan.difference(one, second) < 2e-4
    early = apply_loras(model, [ScheduledLora(lora, Strengths.from_value(0.4))], StrengthSchedule(0.7)).model
    assert random_wan.difference(one, random_wan.sample(early, steps=FEW)) > 0.02


def test_a_shift_of_the_model_moves_the_step_and_not_the_level():
    """Step 15 of 50 at shift 1; at shift 3 and 8 the same level comes later in the run."""
    t_point = TPoint(0.7)
    assert [count_early_steps(t_point, levels(shift, "simple", 50)) for shift in (1.0, 3.0, 8.0)] == [
        15,
        28,
        39,
    ]
    assert torch.tensor(levels(3.0, "simple", 50))[28].item() == pytest.approx(0.7, abs=0.01)
