"""Arms of the subject: what each trains, and what tells figures apart that have the same colors."""

import math
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
from smra_core.miniature.bench.word_attention import compute_word_loss, find_words, measure_share
from smra_core.miniature.small_settings import SUBJECT, SUBJECT_TRAINING
from smra_core.miniature.world.scenes import FIGURES, Scene, render
from smra_core.training.batches import collate
from smra_core.training.sura import SubjectObjective
from smra_core.training.trainer import train_lora
from smra_core.wan.hashed_text import HashedText

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


def test_a_projector_stands_still_when_its_cosine_does():
    steps = subject_objectives.STILL_STEPS
    rising, still = [0.1 * step for step in range(2 * steps)], [0.9] * (2 * steps)
    assert not subject_objectives.has_stopped_rising(rising)
    assert not subject_objectives.has_stopped_rising(still[1:])
    assert subject_objectives.has_stopped_rising(still)


def test_a_projector_that_stands_still_is_held_from_the_next_step_on(nets, folder, monkeypatch):
    arm = SubjectArm("stopped", replace(SUBJECT, sura_share=0.3), stopped_projector=True)
    monkeypatch.setattr(subject_objectives, "has_stopped_rising", lambda cosines: len(cosines) == 1)
    trainings, run = SubjectTrainings([], folder, nets), ArmRun(arm, "ball", 0)
    samples = trainings._prepare(run)
    objective = trainings._make_objective(run, samples)
    lora = init_lora(nets.denoiser.spec, SUBJECT.plan, 4, torch.Generator().manual_seed(0))
    weights = []
    train_lora(
        nets.denoiser, lora, objective, samples, replace(SUBJECT_TRAINING, steps=3, batch_size=1),
        on_step=lambda info: weights.append(objective.projector[0].weight.detach().clone()),
    )  # fmt: skip
    assert not torch.equal(weights[0], make_first_weight(objective)) and torch.equal(weights[0], weights[2])
    assert not objective.trainables() and all(pair.b.any() for pair in lora.values())


def make_first_weight(objective):
    """Return the first weight of the projector that the objective began with."""
    fresh = SubjectObjective(objective.settings, 256, objective.projector[-1].out_features)
    return fresh.projector[0].weight


def test_words_are_found_in_the_caption_and_padding_is_none():
    context = HashedText().encode(["a picture of sks ball", "ball"])
    found = find_words(context, ("sks", "ball"))
    assert found[0].nonzero().flatten().tolist() == [3, 4]
    assert found[1].nonzero().flatten().tolist() == [0]


def test_the_share_of_attention_is_that_of_the_softmax():
    query, key = torch.randn(1, 5, 6), torch.randn(1, 3, 6)
    assert torch.allclose(measure_share(query, key, torch.ones(1, 3), 2), torch.ones(1, 5))
    alike = measure_share(query, torch.zeros(1, 3, 6), torch.tensor([[1.0, 0.0, 1.0]]), 2)
    assert torch.allclose(alike, torch.full((1, 5), 2 / 3))
    logits = query[..., :3] @ key[..., :3].mT / 3**0.5, query[..., 3:] @ key[..., 3:].mT / 3**0.5
    by_hand = sum(part.softmax(-1)[..., 1] for part in logits) / 2
    assert torch.allclose(measure_share(query, key, torch.tensor([[0.0, 1.0, 0.0]]), 2), by_hand)


def test_the_word_loss_is_least_where_the_attention_is_the_mask():
    mask = torch.zeros(1, 1, 1, 2, 4)
    mask[..., :2] = 1
    assert compute_word_loss(torch.tensor([[1.0, 0.0]]), mask).item() == pytest.approx(0.0)
    assert compute_word_loss(torch.tensor([[0.5, 0.5]]), mask).item() == pytest.approx(math.log(2))


def test_losses_of_motionbooth_reach_the_lora(nets, folder, monkeypatch):
    monkeypatch.setattr(subject_objectives, "KNOWN_CLIPS", 1)
    plan = SparsePlan.parse("q,k")
    arm = SubjectArm("words and clips", replace(SUBJECT, plan=plan, sura_weight=0.0), words=0.01, clips=1.0)
    lora = init_lora(nets.denoiser.spec, plan, 4, torch.Generator().manual_seed(0))
    with injected(nets.denoiser.linears(), Injection(lora)):
        objective, losses = prepare_losses(nets, folder, arm, [0.6, 0.3])
        assert losses["words"].shape == losses["clips"].shape == (2,)
        names = [name for name in lora if "cross" in name]
        for loss in (losses["words"], losses["clips"]):
            gradients = torch.autograd.grad(loss.sum(), [lora[name].b for name in names], retain_graph=True)
            assert all(gradient.any() for gradient in gradients)
    assert objective.weights["words"] == 0.01 and objective.weights["clips"] == 1
    assert not any(block.attn2.norm_q._forward_hooks for block in nets.denoiser.dit.blocks)


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
