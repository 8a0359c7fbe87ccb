"""Trainings side by side are those of the training loop, and their tables are by hand."""

from dataclasses import replace

import pytest
import torch

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.miniature.bench import arm_clips
from smra_core.miniature.bench.arm_clips import sample_stack
from smra_core.miniature.bench.arm_kinds import MOTIONS, SUBJECTS
from smra_core.miniature.bench.arm_run import ArmRun, Nets
from smra_core.miniature.bench.arm_table import compare_arms, render_arms, render_differences
from smra_core.miniature.bench.motion_arms import MotionArm, StackedMotion
from smra_core.miniature.bench.run_arms import list_runs, load_nets
from smra_core.miniature.bench.stacked_lora import StackedLora
from smra_core.miniature.small_settings import MOTION
from smra_core.training.gradient_share import backpropagate
from smra_core.training.mora import MotionObjective, MotionSample
from smra_core.training.random_stream import make_generator
from smra_core.wan.flow_matching import sample_training_sigma, sampling_sigmas
from smra_core.wan.hashed_text import HashedText
from smra_core.wan.noise_range import WHOLE, NoiseRange
from smra_core.wan.sampler import initial_noise, sample
from smra_core.wan.spec import LATENTS_21

SIDE, LATENTS = 4, 2


@pytest.fixture(scope="module")
def nets() -> Nets:
    return load_nets(torch.device("cpu"))


@pytest.fixture(scope="module")
def samples():
    torch.manual_seed(0)
    pixels = 8 * SIDE
    return {
        name: MotionSample(
            name, torch.randn(16, LATENTS, SIDE, SIDE), torch.randn(3, 4096),
            torch.randn(4 * (LATENTS - 1), 2, pixels, pixels),
        )
        for name in ("zigzag", "hook")
    }  # fmt: skip


@pytest.mark.parametrize("arm, changes", [
    (MotionArm("temporal"), {"mora_weight": 0.0, "shift": 1.0, "weighted_velocity": True}),
    (MotionArm("share", shift=3.0, weighted=False, share=0.3), {"mora_share": 0.3}),
    (MotionArm("weight", shift=3.0, weighted=False, mora=50.0, difference=2.0),
     {"mora_weight": 50.0, "mora_share": 0.0, "difference_weight": 2.0}),
])  # fmt: skip
def test_a_run_in_a_stack_has_the_gradient_that_it_has_alone(nets, samples, arm, changes):
    other = MotionArm("other", temporal=0.5, mora=10.0)
    stacked = StackedMotion([ArmRun(other, "hook", 1), ArmRun(arm, "zigzag", 0)], samples, nets)
    stacked.step = 1
    gradients = stacked._compute_gradients(0)

    settings = replace(MOTION, **changes)
    lora = init_lora(nets.denoiser.spec, settings.plan, settings.rank, torch.Generator().manual_seed(0))
    objective = MotionObjective(settings, nets.decoder, nets.flow_net.compute_pair_flows)
    sample = samples["zigzag"]
    batch = MotionSample(["zigzag"], sample.latents[None], sample.context[None], sample.reference_flow[None])
    generator = make_generator(0, 1, 0)
    sigma = sample_training_sigma(1, generator, settings.shift)
    noise = torch.randn(batch.latents.shape, generator=generator)
    parameters = [parameter for pair in lora.values() for parameter in pair.parameters()]
    with injected(nets.denoiser.linears(), Injection(lora)):
        losses = objective.losses(nets.denoiser, batch, sigma, noise, generator)
        backpropagate(losses, objective.weights, objective.shares, parameters, [])
    alone = torch.cat([parameter.grad.flatten() for parameter in parameters])
    together = torch.cat([gradient[1].flatten() for gradient in gradients])
    assert (together - alone).norm() < 1e-3 * alone.norm()


def test_a_run_in_a_stack_samples_what_it_samples_alone(nets, monkeypatch):
    settings = replace(arm_clips.SAMPLING, steps=2, frames=5, seed=7)
    monkeypatch.setattr(arm_clips, "SAMPLING", settings)
    spec, linears = nets.denoiser.spec, nets.denoiser.linears()
    loras = [init_lora(spec, MOTION.plan, 4, torch.Generator().manual_seed(seed)) for seed in range(2)]
    for pair in (pair for lora in loras for pair in lora.values()):
        torch.nn.init.normal_(pair.b, std=0.02)
    prompts = [["a red plain circle vvt moving"], ["a cyan plain square vvt moving"]]
    # The second LoRA is on in the first of two steps only, at sigma 1 and not at 0.75.
    stack = StackedLora(loras, torch.device("cpu"))
    together = sample_stack(nets.denoiser, stack, prompts, 7, [WHOLE, NoiseRange(0.9, 1.0)])

    noise = initial_noise(settings, LATENTS_21, 1)
    context, negative = HashedText().encode(prompts[1]), HashedText().encode([""])
    injection = Injection(loras[1])

    def switch(sigma: float) -> None:
        injection.strength = float(sigma >= 0.9)

    with torch.no_grad(), injected(linears, injection):
        alone = sample(
            nets.denoiser, noise, sampling_sigmas(2, settings.shift), context, negative, settings.guidance,
            on_evaluation=switch,
        )  # fmt: skip
    torch.testing.assert_close(together[1], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - alone).abs().max() > 0.01


def test_arms_of_a_stack_share_their_layers_and_all_names_differ():
    for kind in (MOTIONS, SUBJECTS):
        names = [arm.name for arms in kind.stacks for arm in arms]
        assert len(set(names)) == len(names)
    assert all(len({arm.plan for arm in arms}) == 1 for arms in MOTIONS.stacks)
    assert len(list_runs(MOTIONS.stacks[0][:1])) == 2 * 3


def clip(arm, value, seed=0, number=0):
    columns = dict.fromkeys(("error", "recognized", "x", "y", "amount", "shape", "color", "leak"), value)
    return {"arm": arm, "case": "zigzag", "seed": seed, "steps": 100, "clip": number, **columns}


def test_differences_are_paired_clip_by_clip():
    clips = [clip(arm, value + seed, seed) for arm, value in (("a", 0.5), ("b", 0.2)) for seed in range(3)]
    difference = compare_arms(clips, "a", "b", 100, "error")
    assert tuple(difference) == pytest.approx((0.3, 0.3, 0.3))  # however far the seeds are apart
    assert "| a | 3 | 1.50 (0.50..2.50) |" in render_arms(clips, 100)


def test_a_column_that_an_arm_does_not_have_is_empty_in_its_row():
    clips = [clip("a", 0.5), clip("b", 0.5) | {"parts": 1.0}]
    a, b = render_arms(clips, 100).splitlines()[2:]
    assert a.endswith("|  |") and b.endswith("| 1.00 (1.00..1.00) |")


def test_arms_are_compared_with_the_reference_that_learned_the_same():
    clips = [clip("a", 0.5), clip("reference", 0.2), clip("other", 0.3) | {"case": "hook"}]
    rows = render_differences(clips, ("reference", "other", "not run"), 100, "error").splitlines()[2:]
    assert rows == ["| a | reference | 0.30 (0.30..0.30) |"]
