import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from smra_core.lora.adapter import init_lora
from smra_core.lora.plan import ALL_LAYERS, SUBJECT
from smra_core.training import optimizer, trainer
from smra_core.training.batches import order_batch
from smra_core.training.run_folder import RunFolder
from smra_core.training.step_checks import NoGradient, NonFiniteLoss, clip_gradient, measure_gradient
from smra_core.training.sura import SubjectObjective, SubjectSample, SubjectSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.training.trainer import train_lora
from smra_core.wan.noise_range import WHOLE

GRID, DIM, TEXT, FEATURES, RANK = 4, 8, 6, 5, 2
SUBJECT_SETTINGS = SubjectSettings(projector_width=7, rank=RANK)


def samples(count=3):
    torch.manual_seed(0)
    return [
        SubjectSample(
            f"image {i}",
            torch.randn(16, 1, GRID, GRID),
            torch.randn(3, TEXT),
            torch.ones(1, 1, GRID, GRID),
            torch.randn(GRID * GRID // 4, FEATURES),
        )
        for i in range(count)
    ]


class Run:
    """A training of the toy, ready to start."""

    def __init__(self, denoiser, folder=None, **settings):
        self.denoiser = denoiser
        self.lora = init_lora(denoiser.spec, SUBJECT, RANK, torch.Generator().manual_seed(0))
        self.objective = SubjectObjective(SUBJECT_SETTINGS, DIM, FEATURES)
        self.settings = TrainSettings(**{"steps": 6, "learning_rate": 1e-2, "save_every": 4, **settings})
        self.folder = folder and RunFolder(folder, "toy", {"seed": self.settings.seed})
        self.infos = []

    def start(self, on_step=None, data=None):
        def report(info):
            self.infos.append(info)
            if on_step is not None:
                on_step(info)

        return train_lora(
            self.denoiser, self.lora, self.objective, data or samples(), self.settings, self.folder, report
        )


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_of_a_tiny_case_falls(toy_denoiser):
    run = Run(toy_denoiser(), steps=300, batch_size=8, accumulate=1, learning_rate=2e-2)
    run.start(data=samples(1))
    first, last = (sum(info.total for info in part) / 20 for part in (run.infos[:20], run.infos[-20:]))
    assert last < 0.9 * first


def test_the_frozen_model_stays_as_it_was(toy_denoiser):
    denoiser = toy_denoiser()
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    Run(denoiser).start()
    same(denoiser.state_dict(), before)
    assert all("forward" not in module.__dict__ for module in denoiser.linears().values())


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(toy_denoiser):
    torch.manual_seed(11)
    first = Run(toy_denoiser()).start().copy_tensors()
    torch.manual_seed(12)
    same(first, Run(toy_denoiser()).start().copy_tensors())
    other = Run(toy_denoiser(), seed=1).start().copy_tensors()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5])
def test_a_canceled_run_goes_on_bit_for_bit(toy_denoiser, tmp_path, stop_at):
    whole = Run(toy_denoiser()).start().copy_tensors()

    def cancel(info):
        if info.step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(toy_denoiser(), tmp_path).start(cancel)
    second = Run(toy_denoiser(), tmp_path)
    same(second.start().copy_tensors(), whole)
    assert [info.step for info in second.infos] == list(range(stop_at + 1, 7))


def test_more_steps_extend_a_finished_run(toy_denoiser, tmp_path):
    whole = Run(toy_denoiser(), steps=9).start().copy_tensors()
    Run(toy_denoiser(), tmp_path, steps=5).start()
    same(Run(toy_denoiser(), tmp_path, steps=9).start().copy_tensors(), whole)


def test_slow_steps_are_saved_by_the_clock(toy_denoiser, tmp_path, monkeypatch):
    """25 s a step and a state a minute: after steps 4 and 7, and at the end."""
    clock = [0.0]
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run = Run(toy_denoiser(), tmp_path, steps=8, save_every=1000, save_minutes=1.0)
    saved, save = [], run.folder.save
    run.folder.save = lambda state: (saved.append(state.step), save(state))

    def pass_time(info):
        clock[0] += 25.0

    run.start(pass_time)
    assert saved == [4, 7, 8]


def test_a_canceled_run_leaves_the_model_as_found(toy_denoiser):
    denoiser = toy_denoiser()

    def fail(info):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        Run(denoiser).start(fail)
    assert all("forward" not in module.__dict__ for module in denoiser.linears().values())


def test_a_sample_that_is_not_finite_stops_the_run_and_is_named(toy_denoiser, tmp_path):
    bad = samples(1)[0]._replace(name="broken.png", latents=torch.full((16, 1, GRID, GRID), math.nan))
    run = Run(toy_denoiser(), tmp_path, batch_size=1, accumulate=1)
    data = [*samples(2), bad]
    first_bad = next(s for s in range(1, 7) if 2 in order_batch([None] * 3, 1, run.settings.seed, s - 1))
    with pytest.raises(NonFiniteLoss, match=f"loss of broken.png is nan in step {first_bad}"):
        run.start(data=data)
    assert len(run.infos) == first_bad - 1
    again = Run(toy_denoiser(), tmp_path, batch_size=1, accumulate=1, steps=first_bad - 1)
    assert all(tensor.isfinite().all() for tensor in again.start(data=data).copy_tensors().values())


class FlatSample(NamedTuple):
    name: str
    latents: Tensor
    context: Tensor


class GradientBreaker:
    """Its loss is finite and its gradient is not: the square root at zero."""

    weights, shares, shift, noise_range = {"loss": 1.0}, {}, 1.0, WHOLE

    def trainables(self):
        return {}

    def losses(self, denoiser, batch, sigma, noise, generator):
        velocity = denoiser.velocity(noise, sigma, batch.context).velocity
        return {"loss": (velocity * 0).sum((1, 2, 3, 4)).sqrt()}


class FirstBlockOnly(GradientBreaker):
    """Reaches the first block alone."""

    def losses(self, denoiser, batch, sigma, noise, generator):
        tokens = denoiser.velocity(noise, sigma, batch.context, token_block=0).tokens
        return {"loss": tokens.square().mean((1, 2))}


def flat_samples():
    return [FlatSample("clip", torch.zeros(16, 1, GRID, GRID), torch.randn(3, TEXT))]


def test_a_gradient_that_is_not_finite_changes_nothing(toy_denoiser):
    run = Run(toy_denoiser())
    run.objective = GradientBreaker()
    before = {name: pair.a.detach().clone() for name, pair in run.lora.items()}
    with pytest.raises(NonFiniteLoss, match="gradient is nan in step 1, first in lora.blocks.0"):
        run.start(data=flat_samples())
    assert all(torch.equal(pair.a, before[name]) for name, pair in run.lora.items())


def test_adapters_that_the_losses_do_not_reach_are_named(toy_denoiser):
    run = Run(toy_denoiser())
    run.objective = FirstBlockOnly()
    with pytest.raises(NoGradient, match="5 of 10 adapters have no gradient after step 1, first blocks.1"):
        run.start(data=flat_samples())


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
])  # fmt: skip
def test_out_of_memory_says_what_to_lower(toy_denoiser, tmp_path, error):
    def fail(info):
        if info.step == 2:
            raise error

    with pytest.raises(
        torch.OutOfMemoryError, match="step 3; the steps before are kept. Lower batch_size, or the w"
    ):
        Run(toy_denoiser(), tmp_path).start(fail)
    second = Run(toy_denoiser(), tmp_path)
    second.start()
    assert second.infos[0].step == 3


def test_a_bad_gradient_is_named_by_its_own_parameter(toy_denoiser):
    class BreakOne(SubjectObjective):
        def losses(self, *args):
            losses = super().losses(*args)
            weight = self.projector[2].weight
            return losses | {"sura": losses["sura"] + (weight * 0).sum().sqrt()}

    run = Run(toy_denoiser())
    run.objective = BreakOne(SUBJECT_SETTINGS, DIM, FEATURES)
    with pytest.raises(NonFiniteLoss, match="in step 1, first in objective.2.weight; the steps before"):
        run.start()


def test_a_step_waits_for_the_device_once(toy_denoiser, monkeypatch):
    """Numbers are read from tensors in one place, apart from AdamW's own and those that are on the CPU."""
    read = []

    def watch(name):
        method = getattr(Tensor, name)

        def reading(tensor, *args):
            if tensor.is_floating_point():
                read.append((name, tensor.numel()))
            return method(tensor, *args)

        monkeypatch.setattr(Tensor, name, reading)

    for name in ("item", "tolist", "nonzero", "__bool__", "__float__"):
        watch(name)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda optimizer: None)
    per_step = []
    Run(toy_denoiser(), steps=3, batch_size=2, accumulate=2).start(
        lambda info: per_step.append([*read]) or read.clear()
    )
    losses = 2 * 2 * 2  # region and sura, of two samples in each of two batches
    on_the_cpu = [("tolist", 4), ("tolist", 2)]  # the samples' noise levels, and the edges of their bands
    assert per_step[1:] == 2 * [[("tolist", losses + 1), *on_the_cpu]]


def test_a_run_goes_on_bit_for_bit_with_a_fused_optimizer(toy_denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer, "_choose_fused", lambda device: True)
    whole = Run(toy_denoiser(), steps=6).start().copy_tensors()
    Run(toy_denoiser(), tmp_path, steps=3).start()
    same(Run(toy_denoiser(), tmp_path, steps=6).start().copy_tensors(), whole)


def test_clipping_scales_as_torchs_own_does(toy_denoiser):
    parameter = nn.Parameter(torch.zeros(3))
    for clip in (0.5, 5.0, 50.0):
        parameter.grad = torch.tensor([3.0, 4.0, 12.0])
        norm = measure_gradient({"x": parameter})
        assert norm.item() == 13
        run = SimpleNamespace(parameters={"x": parameter})
        clip_gradient(run, norm.item(), TrainSettings(grad_clip=clip), 1)
        found, parameter.grad = parameter.grad, torch.tensor([3.0, 4.0, 12.0])
        torch.nn.utils.clip_grad_norm_([parameter], clip)
        torch.testing.assert_close(found, parameter.grad, rtol=1e-6, atol=0)


def test_clipping_reports_the_norm_before_it(toy_denoiser):
    loose, tight = Run(toy_denoiser(), steps=1, grad_clip=0), Run(toy_denoiser(), steps=1, grad_clip=1e-3)
    loose.start()
    tight.start()
    assert (
        loose.infos[0].grad_norm == pytest.approx(tight.infos[0].grad_norm)
        and loose.infos[0].grad_norm > 1e-3
    )


@pytest.mark.parametrize("name, value", [("steps", 0), ("batch_size", 0), ("learning_rate", 0.0)])
def test_settings_that_train_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        TrainSettings(**{name: value})


def test_only_the_plans_adapters_and_the_projector_are_trained(toy_denoiser):
    denoiser = toy_denoiser()
    run = Run(denoiser, steps=2)
    state = run.start()
    names = {
        name.split(".a")[0] for name in state.parameters if name.startswith("lora.") and name.endswith(".a")
    }
    assert names == {f"lora.{name}" for name in SUBJECT.select(denoiser.linears())}
    assert names < {f"lora.{name}" for name in ALL_LAYERS.select(denoiser.linears())}
    assert isinstance(run.objective.projector, nn.Module)
