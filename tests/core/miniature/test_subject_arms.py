"""Arms of the subject: what each trains, and what tells figures apart that have the same colors."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import SparsePlan
from smra_core.miniature.bench import subject_objectives
from smra_core.miniature.bench.arm_clips import list_subject_scenes, measure_subject
from smra_core.miniature.bench.arm_run import ArmRun
from smra_core.miniature.bench.metrics import measure_likeness
from smra_core.miniature.bench.parts import measure_parts, paint_arrangements
from smra_core.miniature.bench.run_arms import load_nets
from smra_core.miniature.bench.subject_arm_list import LAST_BLOCK, REGION, SUBJECT_ARMS
from smra_core.miniature.bench.subject_arms import SubjectArm, SubjectTrainings
from smra_core.miniature.small_settings import SUBJECT, SUBJECT_TRAINING
from smra_core.miniature.world.scenes import FIGURES, Scene, render
from smra_core.training.batches import collate
from smra_core.training.sura import SubjectObjective
from smra_core.training.trainer import train_lora

STEPS = (1, 2)


@pytest.fixture(scope="module")
def nets():
    return load_nets(torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arms")


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(
        "smra_core.miniature.bench.subject_arms.SUBJECT_TRAINING", replace(SUBJECT_TRAINING, batch_size=2)
    )


def flatten(stack, run=0):
    return torch.cat([factor[run].detach().flatten() for pair in stack.pairs.values() for factor in pair])


def test_an_arm_trains_what_the_training_loop_trains_and_keeps_each_step(nets, folder, small_steps):
    run = ArmRun(SubjectArm("paper"), "ball", 3)
    trainings = SubjectTrainings([run], folder, nets)
    kept = {step: flatten(stack) for step, stack in trainings.follow(STEPS)}

    spec, samples = nets.denoiser.spec, trainings._prepare(run)
    lora = init_lora(spec, SUBJECT.plan, SUBJECT.rank, torch.Generator().manual_seed(3))
    objective = SubjectObjective(SUBJECT, spec.dim, samples[0].features.shape[-1], 3)
    train_lora(
        nets.denoiser, lora, objective, samples, replace(SUBJECT_TRAINING, steps=2, batch_size=2, seed=3)
    )
    expected = torch.cat([factor.detach().flatten() for pair in lora.values() for factor in (pair.a, pair.b)])
    torch.testing.assert_close(kept[2], expected)
    assert (kept[1] - kept[2]).abs().max() > 1e-4


def test_without_losses_nothing_is_trained(nets, folder):
    base = next(arm for arm in SUBJECT_ARMS if arm.name == "base")
    for _, stack in SubjectTrainings([ArmRun(base, "ball", 0)], folder, nets).follow(STEPS):
        assert not any(b.any() for _, b in stack.pairs.values())


def prepare_losses(nets, folder, arm, levels):
    """Return the objective of an arm, and its losses of one picture at some noise levels."""
    trainings, run = SubjectTrainings([], folder, nets), ArmRun(arm, "ball", 0)
    samples = trainings._prepare(run)
    objective = trainings._make_objective(run, samples)
    sigma = torch.tensor(levels)
    batch = collate([samples[0]] * len(levels))
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    return objective, objective.losses(nets.denoiser, batch, sigma, noise, torch.Generator())


def test_sura_counts_above_its_noise_level_only(nets, folder):
    _, losses = prepare_losses(nets, folder, SubjectArm("above", aligned_above=0.5), [0.4, 0.6])
    assert losses["sura"][0] == 0 and losses["sura"][1] != 0
    assert (losses["region"] > 0).all()


@pytest.mark.parametrize("change", ["held_projector", "decoded"])
def test_alignment_without_a_trained_projector_reaches_the_lora(nets, folder, monkeypatch, change):
    for name, small in (("PICTURES", 2), ("FIT_BATCH", 2), ("FIT_STEPS", 1)):
        monkeypatch.setattr(subject_objectives, name, small)
    plan = SparsePlan.parse("ffn.0")
    arm = SubjectArm(change, replace(SUBJECT, align_block=LAST_BLOCK, plan=plan), **{change: True})
    lora = init_lora(nets.denoiser.spec, plan, 4, torch.Generator().manual_seed(0))
    with injected(nets.denoiser.linears(), Injection(lora)):
        objective, losses = prepare_losses(nets, folder, arm, [0.6])
        losses["sura"].sum().backward()
    assert all(pair.b.grad.any() for pair in lora.values())
    assert not objective.trainables()
    assert -1 <= losses["sura"].item() < 0


def test_an_arm_may_know_one_picture_only(nets, folder):
    trainings = SubjectTrainings([], folder, nets)
    counts = [len(trainings._prepare(ArmRun(replace(REGION, pictures=n), "ball", 0))) for n in (1, 3)]
    assert counts == [1, 3]


def test_figures_have_one_outline_and_the_same_colors():
    painted = [render(Scene(subject=name), frames=1) for name in FIGURES]
    assert all(torch.equal(a.mask_px, b.mask_px) for a, b in pairwise(painted))
    colors = [sorted(tuple(color.tolist()) for color in figure.values()) for figure in FIGURES.values()]
    assert colors[0] == colors[1]


def test_parts_tell_a_figure_from_the_other_of_the_same_colors():
    scene = list_subject_scenes("robot")[0]
    frames = render(scene).frames[:1]
    shown = measure_subject(frames, scene)
    assert shown["parts"] == 1 and measure_parts(frames, "doll") == 0
    assert shown["likeness"] > 0.9 and measure_likeness(frames, "doll") < 0.5
    assert shown["background"] == 1


def test_all_arrangements_of_four_colors_differ():
    crops = paint_arrangements("robot")
    assert len(crops) == 24
    assert min((a - b).abs().max() for a, b in pairwise(crops)) > 0.1
