"""Options of a run: each is resumed bit for bit, and what it writes is what it says."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from smra_core.lora.adapter import Injection, LoraPair, init_lora, injected
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.plan import SUBJECT
from smra_core.lora.reader import load_lora
from smra_core.lora.writer import save_lora
from smra_core.training.held_out import leave_one_out
from smra_core.training.moving_average import LoraAverage
from smra_core.training.preservation import BaseModel, preservation_loss
from smra_core.training.run_folder import LOSSES, RunFolder, read_losses
from smra_core.training.sura import SubjectObjective, SubjectSample, SubjectSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.training.trainer import train_lora
from smra_core.wan.condition import NO_INPUTS

GRID, DIM, TEXT, FEATURES, RANK, STEPS = 4, 8, 6, 5, 2, 6
OPTIONS = [
    {"lr_schedule": "cosine", "warmup_steps": 2, "ema_decay": 0.9},
    {"ema_decay": 0.5},
    {"held_out_every": 2, "ema_decay": 0.5},
    {"optimizer": "prodigy", "learning_rate": 1.0, "ema_decay": 0.5},
    {"optimizer": "adamw-8bit", "ema_decay": 0.5, "projector_width": 600},
]
"""With a projector of 600, AdamW of 8 bits has weights of more than 4096 values, whose moments it packs."""


def make_samples(count=3):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    mask = torch.zeros(1, 1, GRID, GRID)
    mask[..., : GRID // 2] = 1
    return [
        SubjectSample(
            f"image {i}", draw(16, 1, GRID, GRID), draw(3, TEXT), mask, draw(GRID * GRID // 4, FEATURES)
        )
        for i in range(count)
    ]


def start(denoiser, folder=None, on_step=None, keep=None, preserve_weight=0.0, projector_width=7, **options):
    if options.get("optimizer") == "prodigy":
        pytest.importorskip("prodigyopt")
    if options.get("optimizer") == "adamw-8bit":
        pytest.importorskip("bitsandbytes", minversion="0.50")
    settings = TrainSettings(
        **{"steps": STEPS, "learning_rate": 1e-2, "save_every": 4, "accumulate": 1, **options}
    )
    losses = SubjectSettings(projector_width=projector_width, rank=RANK, preserve_weight=preserve_weight)
    lora = init_lora(denoiser.spec, SUBJECT, RANK, torch.Generator().manual_seed(0))
    samples, held_out = leave_one_out(make_samples(), settings.held_out_every)
    return train_lora(
        denoiser, lora, SubjectObjective(losses, DIM, FEATURES), samples, settings,
        folder and RunFolder(folder, "toy", {}), on_step, held_out, keep,
    )  # fmt: skip


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", [*OPTIONS, {"preserve_weight": 0.5}], ids=str)
def test_a_canceled_run_goes_on_bit_for_bit_with_every_option(toy_denoiser, tmp_path, options):
    whole = start(toy_denoiser(), tmp_path / "whole", **options)

    def cancel(info):
        if info.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(toy_denoiser(), tmp_path / "cut", cancel, **options)
    resumed = start(toy_denoiser(), tmp_path / "cut", **options)
    same(resumed.copy_tensors(), whole.copy_tensors())
    same(*({name: pair.delta() for name, pair in state.publish().items()} for state in (resumed, whole)))
    tables = [next((tmp_path / name).glob(f"*/{LOSSES}")).read_text() for name in ("whole", "cut")]
    assert tables[0] == tables[1]
    plain = start(toy_denoiser()).publish()
    assert any(not torch.equal(pair.delta(), plain[name].delta()) for name, pair in whole.publish().items())


def test_the_average_is_the_weighted_mean_of_the_weights_after_each_step():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = LoraAverage({"lora.x.a": weight}, 0.5)
    for value in (4.0, 1.0, 8.0):
        weight.data.fill_(value)
        average.update()
    # (0.25 * 4 + 0.5 * 1 + 1 * 8) / 1.75, as in the smoothed line of the losses
    assert average.average(3)["lora.x.a"].item() == pytest.approx(9.5 / 1.75)


def test_the_published_lora_is_the_average_and_training_goes_on_with_the_weights(toy_denoiser):
    weights = []
    lora = {}

    def note(info):
        weights.append({name: pair.b.detach().clone() for name, pair in lora.items()})

    denoiser = toy_denoiser()
    lora = init_lora(denoiser.spec, SUBJECT, RANK, torch.Generator().manual_seed(0))
    settings = TrainSettings(steps=3, learning_rate=1e-2, ema_decay=0.5, accumulate=1)
    objective = SubjectObjective(SubjectSettings(projector_width=7, rank=RANK), DIM, FEATURES)
    state = train_lora(denoiser, lora, objective, make_samples(), settings, None, note)
    for name, pair in state.publish().items():
        first, second, third = (step[name] for step in weights)
        torch.testing.assert_close(pair.b.detach(), (first + 2 * second + 4 * third) / 7)
        assert torch.equal(lora[name].b.detach(), third)
    plain = start(toy_denoiser(), steps=3).parameters
    assert all(torch.equal(plain[f"lora.{name}.b"], pair.b) for name, pair in lora.items())


def test_a_warm_up_begins_with_a_small_step(toy_denoiser):
    """AdamW's first step is as large as the learning rate, in every value."""
    full, tenth = (
        start(toy_denoiser(), steps=1, learning_rate=1e-2, weight_decay=0.0, warmup_steps=steps).parameters
        for steps in (0, 10)
    )
    name = "lora.blocks.0.self_attn.q.b"
    torch.testing.assert_close(tenth[name].detach(), full[name].detach() / 10, rtol=1e-4, atol=1e-9)


def test_loras_are_kept_on_the_way_and_are_those_of_their_steps(toy_denoiser, tmp_path):
    kept = []

    def keep(state):
        path = tmp_path / f"{state.step}.safetensors"
        save_lora(path, state.publish(), LoraMetadata(steps=state.step))
        return path

    start(toy_denoiser(), None, lambda info: kept.append(info.kept), keep, keep_every=2)
    assert [path and path.stem for path in kept] == [None, "2", None, "4", None, "6"]
    second = start(toy_denoiser(), steps=2).publish()
    read = load_lora(tmp_path / "2.safetensors")
    assert all(torch.equal(pair.delta(), second[name].delta()) for name, pair in read.lora.items())
    assert read.metadata.steps == 2


def test_the_held_out_loss_is_measured_on_the_item_that_is_left_out(toy_denoiser, tmp_path):
    infos = []
    start(toy_denoiser(), tmp_path, infos.append, held_out_every=2)
    assert [bool(info.held_out) for info in infos] == [True, True, False, True, False, True]
    columns = read_losses(next(tmp_path.glob(f"*/{LOSSES}")))
    values = columns["held out region"]
    assert [value == value for value in values] == [True, True, False, True, False, True]  # NaN is not itself
    assert values[0] == pytest.approx(infos[0].held_out["held out region"], rel=1e-5)
    # Training without the item is the same run, with or without its measurement.
    lora = init_lora(toy_denoiser().spec, SUBJECT, RANK, torch.Generator().manual_seed(0))
    objective = SubjectObjective(SubjectSettings(projector_width=7, rank=RANK), DIM, FEATURES)
    settings = TrainSettings(steps=STEPS, learning_rate=1e-2, save_every=4, accumulate=1)
    other = train_lora(toy_denoiser(), lora, objective, make_samples()[:2], settings)
    saved = load_file(next(tmp_path.glob("*/state.safetensors")))
    same({name: saved[name] for name in other.parameters}, dict(other.parameters))


def test_a_single_item_cannot_be_left_out():
    with pytest.raises(ValueError, match="there is only one"):
        leave_one_out(["picture"], 5)
    assert leave_one_out(["a", "b", "c"], 5) == (["a", "b"], ["c"])
    assert leave_one_out(["a"], 0) == (["a"], [])


def test_the_preservation_loss_by_hand():
    one, base = torch.zeros(2, 3, 1, 2, 2), torch.ones(2, 3, 1, 2, 2)
    where = torch.zeros(2, 1, 1, 2, 2)
    where[0, ..., 0] = 1
    one[0, ..., 0] = 3.0
    assert preservation_loss(one, base, where).tolist() == [4.0, 0.0]
    assert preservation_loss(one, base).tolist() == [2.5, 1.0]


def make_loud_lora(denoiser):
    generator = torch.Generator().manual_seed(1)
    lora = init_lora(denoiser.spec, SUBJECT, RANK, generator)
    return {
        name: LoraPair(pair.a.detach().double(), torch.randn(pair.b.shape, generator=generator).double() / 5)
        for name, pair in lora.items()
    }


def test_the_base_model_is_the_one_without_the_lora_and_leaves_it_on(toy_denoiser):
    denoiser = toy_denoiser().double()
    sample, sigma = make_samples(1)[0], torch.full((1,), 0.4).double()
    inputs = sample.latents[None].double(), sigma, sample.context[None].double()
    plain = denoiser.velocity(*inputs).velocity
    injection = Injection(make_loud_lora(denoiser))
    with injected(denoiser.linears(), injection):
        loud = denoiser.velocity(*inputs).velocity
        base = BaseModel(denoiser, injection).predict(*inputs, NO_INPUTS).velocity
        assert torch.equal(base, plain) and not base.requires_grad
        assert torch.equal(denoiser.velocity(*inputs).velocity, loud) and not torch.equal(loud, plain)


def test_gradients_of_base_preservation_equal_finite_differences(toy_denoiser, finite_difference):
    denoiser = toy_denoiser().double()
    lora, sample = make_loud_lora(denoiser), make_samples(1)[0]
    batch = sample._replace(
        name=[sample.name],
        **{key: getattr(sample, key)[None].double() for key in ("latents", "context", "mask_latent")},
    )
    settings = SubjectSettings(projector_width=7, rank=RANK, sura_weight=0.0, preserve_weight=1.0)
    objective, injection = SubjectObjective(settings, DIM, FEATURES), Injection(lora)
    objective.base = BaseModel(denoiser, injection)
    sigma, noise = torch.full((1,), 0.4).double(), torch.randn(batch.latents.shape).double()

    def loss():
        return objective.losses(denoiser, batch, sigma, noise, torch.Generator())["preserve"].sum()

    with injected(denoiser.linears(), injection):
        loss().backward()
        for name in ("blocks.0.self_attn.q", "blocks.1.ffn.0"):
            for parameter in lora[name].parameters():
                direction = torch.randn_like(parameter)
                slope = finite_difference(loss, parameter, direction)
                assert slope != 0
                assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_base_preservation_holds_the_outside_still(toy_denoiser):
    def run(weight):
        infos = []
        start(
            toy_denoiser(),
            None,
            infos.append,
            preserve_weight=weight,
            steps=25,
            learning_rate=5e-2,
            accumulate=1,
        )
        return infos

    without = run(1e-9)[-1].losses["preserve"]
    assert run(10.0)[-1].losses["preserve"] < 0.5 * without
