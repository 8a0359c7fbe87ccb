"""The Sparse LoRA Loader's arithmetic, against weights that are overwritten around every evaluation."""

import threading

import pytest
import random_wan
import torch
from random_wan import difference, leftovers, reference, sample
from smrabooth_pack.nodes.patching.apply_loras import MERGE, ON_THE_FLY, apply_loras, at_constant_strength
from smrabooth_pack.nodes.patching.call_time_swap import CallTimeSwap
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule, TPoint
from torch.utils._python_dispatch import TorchDispatchMode

EXACT = 2e-4
SCHEDULE = StrengthSchedule(0.7)
LATE_BELOW = 0.75
"""At shift 1 and 10 steps the levels are 1, 0.9, … and the switch falls on 0.7."""
ONE_STEP_LATER, ONE_STEP_EARLIER = 0.65, 0.85
SUBJECT, MOTION = Strengths(0.4, 0.8), Strengths.from_value(1.0)


def lora(factors):
    return {name: LoraPair(a, b) for name, (a, b) in factors.items()}


def applied(model, loras, strengths=(SUBJECT, MOTION), constant="auto", schedule=SCHEDULE):
    scheduled = [ScheduledLora(lora(f), s) for f, s in zip(loras, strengths, strict=True)]
    return apply_loras(model, scheduled, schedule, constant).model


def expected(model, loras, late_below=LATE_BELOW):
    subject, motion = loras
    return reference(model, [(subject, 0.4, 0.8), (motion, 1.0, 1.0)], late_below)


@pytest.mark.parametrize("sampler", ["euler", "heunpp2", "dpmpp_2m_sde", "uni_pc"])
def test_a_switched_run_equals_overwritten_weights(model, loras, sampler):
    ours = sample(applied(model, loras), sampler)
    assert difference(ours, sample(expected(model, loras), sampler)) < EXACT


class Products(TorchDispatchMode):
    """Counts products that are added in place, each of which reads and writes an output."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.addmm_.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("strengths", [(SUBJECT, MOTION), (SUBJECT, Strengths.from_value(0.0))])
def test_each_output_is_written_once_more_however_many_loras_are_added(model, loras, strengths):
    swap = applied(model, loras, strengths, ON_THE_FLY)
    with Products() as products:
        sample(swap, steps=1)
    reached = set().union(*loras) if strengths[1] is MOTION else set(loras[0])
    assert set(loras[0]) & set(loras[1]) and products.count == len(reached)


def test_the_switch_is_at_its_step_and_nowhere_else(model, loras):
    ours = sample(applied(model, loras))
    for wrong in (ONE_STEP_LATER, ONE_STEP_EARLIER, -1.0, 2.0):
        assert difference(ours, sample(expected(model, loras, wrong))) > 100 * EXACT


@pytest.mark.parametrize("constant", [MERGE, ON_THE_FLY])
def test_merged_and_on_the_fly_are_the_same(model, loras, constant):
    ours = sample(applied(model, loras, constant=constant))
    assert difference(ours, sample(expected(model, loras))) < EXACT


def test_a_constant_pair_equals_the_stock_loader(model, loras):
    import comfy.sd

    named = {}
    for name, (a, b) in loras[1].items():
        named[f"diffusion_model.{name}.lora_A.weight"], named[f"diffusion_model.{name}.lora_B.weight"] = a, b
    stock, _ = comfy.sd.load_lora_for_models(model, None, named, 0.5, 0)
    ours = applied(model, loras[1:], [Strengths.from_value(0.5)])
    assert torch.equal(sample(ours), sample(stock))


def test_early_and_late_models_in_two_passes_equal_one_pass(model, loras):
    scheduled = [ScheduledLora(lora(f), s) for f, s in zip(loras, (SUBJECT, MOTION), strict=True)]
    early, late = (
        apply_loras(model, at_constant_strength(scheduled, side), SCHEDULE).model
        for side in ("early", "late")
    )
    one = sample(apply_loras(model, scheduled, SCHEDULE).model)
    half = sample(early, start_step=0, last_step=3, force_full_denoise=False)
    two = random_wan.sample_on(late, half, start_step=3, last_step=10, force_full_denoise=True)
    assert difference(one, two) < EXACT


def test_a_share_of_the_steps_follows_the_shift(model, loras):
    shifted = random_wan.with_shift(model, 5.0)
    by_share = sample(applied(shifted, loras, schedule=StrengthSchedule(0.3, as_share=True)))
    # Step 3 of 10 at shift 5 is sigma 5 * 0.7 / (1 + 4 * 0.7).
    by_sigma = sample(applied(shifted, loras, schedule=StrengthSchedule(3.5 / 3.8)))
    assert torch.equal(by_share, by_sigma)
    assert difference(by_share, sample(applied(shifted, loras))) > 100 * EXACT


def test_loaders_in_a_row_and_the_shift_node_after_them(model, loras):
    subject, motion = loras
    chained = applied(applied(model, [subject], [SUBJECT]), [motion], [Strengths(1.0, 0.5)])
    chained = random_wan.with_shift(chained, 3.0)
    plain = random_wan.with_shift(model, 3.0)
    # simple, shift 3: levels … 0.9545, 0.875, 0.7778 is nearest to 0.7, 0.6667 nearer still.
    levels = [3 * x / (1 + 2 * x) for x in (i / 10 for i in range(10, -1, -1))]
    nearest = min(levels, key=lambda level: abs(level - 0.7))
    wanted = reference(plain, [(subject, 0.4, 0.8), (motion, 1.0, 0.5)], nearest + 0.005)
    assert difference(sample(chained), sample(wanted)) < EXACT


def test_the_same_model_in_two_samplers_and_cloned_after_a_run(model, loras):
    ours = applied(model, loras)
    first = sample(ours)
    assert torch.equal(sample(ours), first)
    assert torch.equal(sample(ours.clone()), first)


def test_nothing_is_left_in_the_model_after_a_run(model, loras):
    before = sample(model)
    sample(applied(model, loras, constant=ON_THE_FLY))
    assert leftovers(model) == []
    assert torch.equal(sample(model), before)


class Broken(Exception):
    pass


def test_nothing_is_left_in_the_model_after_an_error_in_mid_sampling(model, loras):
    before, calls = sample(model), []

    def fail(step, *_):
        calls.append(step)
        if step == 4:
            raise Broken

    with pytest.raises(Broken):
        sample(applied(model, loras), callback=fail)
    assert calls == [0, 1, 2, 3, 4]
    assert leftovers(model) == []
    assert torch.equal(sample(model), before)


def test_nothing_is_left_in_the_model_after_the_user_cancels(model, loras):
    import comfy.model_management as management
    import comfy.ops

    before = sample(model)

    def cancel(step, *_):
        if step == 4:
            management.interrupt_current_processing()
            if not hasattr(comfy.ops, "run_every_op"):  # older hosts look from their progress bar only
                management.throw_exception_if_processing_interrupted()

    with pytest.raises(management.InterruptProcessingException):
        sample(applied(model, loras), callback=cancel)
    assert leftovers(model) == []
    assert torch.equal(sample(model), before)


def test_the_bare_net_is_as_before_after_a_run(model, loras):
    """Called without the host's sampler around it. What is merged stays in it until the host loads another
    MODEL of these weights.
    """
    net = model.model.diffusion_model
    generator = torch.Generator().manual_seed(5)
    x, context = (
        torch.randn(s, generator=generator) for s in (random_wan.LATENT, (1, 12, random_wan.TEXT_DIM))
    )
    with torch.inference_mode():
        before = net(x, torch.tensor([500.0]), context)
        sample(applied(model, loras, constant=ON_THE_FLY))
        assert torch.equal(net(x, torch.tensor([500.0]), context), before)


def test_nothing_is_left_after_an_error_inside_the_model(model, loras, monkeypatch):
    head = model.model.diffusion_model.head
    monkeypatch.setattr(type(head), "forward", lambda *_: (_ for _ in ()).throw(Broken()))
    with pytest.raises(Broken):
        sample(applied(model, loras))
    assert leftovers(model) == []


def test_a_foreign_forward_is_put_back(model, loras):
    linear = model.model.get_submodule("diffusion_model.blocks.0.ffn.0")
    original = linear.forward
    linear.forward = foreign = lambda x: original(x)
    try:
        assert difference(sample(applied(model, loras)), sample(expected(model, loras))) < EXACT
        assert linear.forward is foreign
    finally:
        del linear.forward


def test_a_layer_that_is_never_called_is_an_error(model, loras, monkeypatch):
    """As when a host computes a layer from its weight: the LoRA there would silently be absent."""
    attention = model.model.get_submodule("diffusion_model.blocks.1.cross_attn")
    weight, bias = attention.q.weight, attention.q.bias
    bypass = torch.nn.Identity()
    bypass.forward = lambda x: torch.nn.functional.linear(x, weight, bias)
    real = type(attention).forward

    def forward(self, *args, **kwargs):
        if self is not attention:
            return real(self, *args, **kwargs)
        linear, self._modules["q"] = self._modules["q"], bypass
        try:
            return real(self, *args, **kwargs)
        finally:
            self._modules["q"] = linear

    monkeypatch.setattr(type(attention), "forward", forward)
    with pytest.raises(RuntimeError, match=r"blocks\.1\.cross_attn\.q.*model_early"):
        sample(applied(model, loras))
    assert leftovers(model) == []


def test_a_block_that_is_skipped_for_one_evaluation_is_no_error(model, loras, monkeypatch):
    """Skip-layer guidance goes past whole blocks."""
    block, calls = model.model.diffusion_model.blocks[1], []
    real = type(block).forward

    def forward(self, x, *args, **kwargs):
        if self is block:
            calls.append(1)
            if len(calls) == 1:
                return x
        return real(self, x, *args, **kwargs)

    monkeypatch.setattr(type(block), "forward", forward)
    sample(applied(model, loras))
    assert len(calls) > 1


def evaluate(model, wrapper, sigma):
    """One evaluation as a sampler makes it, without telling the levels of its run."""
    from comfy.patcher_extension import WrapperExecutor

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(random_wan.LATENT, generator=generator)
    context = torch.randn(1, 12, random_wan.TEXT_DIM, generator=generator)
    base = model.model
    executor = WrapperExecutor.new_class_executor(base._apply_model, base, [wrapper])
    return executor.execute(x, torch.tensor([sigma]), None, context, None, {})


def subject_swap(loras):
    return CallTimeSwap([ScheduledLora(lora(loras[0]), SUBJECT)], lambda base: TPoint(0.7))


def test_two_copies_of_the_model_in_two_threads(state, loras):
    """As on two graphics cards: one wrapper, two models, at the same time, on two sides of T_point."""
    runs = [(random_wan.load(state), 0.9), (random_wan.load(state), 0.5)]
    swap, barrier, results = subject_swap(loras), threading.Barrier(2), {}

    def work(model, sigma):
        with torch.inference_mode():
            for _ in range(5):
                barrier.wait()
                results[sigma] = evaluate(model, swap, sigma)

    threads = [threading.Thread(target=work, args=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, sigma in runs:
        (wrapper,) = reference(model, [(loras[0], 0.4, 0.8)], 0.7).wrappers["apply_model"]["reference"]
        with torch.inference_mode():
            assert difference(results[sigma], evaluate(model, wrapper, sigma)) < EXACT
    assert difference(results[0.9], results[0.5]) > 100 * EXACT


@pytest.mark.parametrize("first", [True, False])
def test_the_same_loader_in_and_out_of_inference_mode(model, loras, first):
    swap, results = subject_swap(loras), []
    for mode in (first, not first):
        with torch.inference_mode(mode), torch.no_grad():
            results.append(evaluate(model, swap, 0.9))
    assert torch.equal(*results)


def test_factors_leave_the_device_after_a_run_and_come_back(model, loras):
    ours = applied(model, loras)
    sample(ours)
    (swap,) = next(iter(ours.wrappers["apply_model"].values()))
    additions = [addition for state in swap._states.values() for addition in state.additions.values()]
    assert additions and all(addition.factors is None for addition in additions)
    assert difference(sample(ours), sample(expected(model, loras))) < EXACT


def test_a_lora_of_another_model_size_is_refused(model):
    factors = {"blocks.0.self_attn.q": (torch.zeros(4, 128), torch.zeros(128, 4))}
    with pytest.raises(
        ValueError, match=r"blocks\.0\.self_attn\.q is for a linear of \(128, 128\).*\(256, 256\)"
    ):
        applied(model, [factors], [SUBJECT])


def test_a_lora_with_more_blocks_than_the_model_is_refused(model):
    factors = {"blocks.29.self_attn.q": (torch.zeros(4, 256), torch.zeros(256, 4))}
    with pytest.raises(ValueError, match=r"reaches over 30 blocks, the model has 2"):
        applied(model, [factors], [SUBJECT])
