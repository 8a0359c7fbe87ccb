"""The strength of the LoRA at every evaluation, under samplers, caches, windows and other nodes."""

import inspect
import logging

import pytest
import random_variants
import torch
from random_variants import BY_NAME
from random_wan import difference, leftovers, reference
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule

EXACT = 1e-4
STEPS, LATE_BELOW = 6, 0.67
"""Levels 1, 0.833, 0.667, 0.5, …: the one nearest to 0.7 is 0.667."""
EARLY, LATE = 0.4, 0.8
VARIANT = BY_NAME["T2V"]


@pytest.fixture(scope="module")
def model():
    loaded = random_variants.load(VARIANT)
    # EasyCache reads the shift before the host loads the MODEL: its first run would take the default.
    advanced(loaded, cfg=1.0)
    return loaded


@pytest.fixture(scope="module")
def factors():
    return random_variants.make_lora(VARIANT, ("q", "k", "ffn.0"), 1)


def applied(model, factors, early=EARLY, late=LATE):
    lora = {name: LoraPair(a, b) for name, (a, b) in factors.items()}
    return apply_loras(model, [ScheduledLora(lora, Strengths(early, late))], StrengthSchedule(0.7)).model


def logged(model):
    """A clone that writes down (sigma, strength) of every evaluation, LATE of it merged; and the list."""
    from comfy.patcher_extension import WrappersMP

    ((swap,),) = model.wrappers[WrappersMP.APPLY_MODEL].values()
    seen = []

    def wrapper(executor, x, t, *args, **kwargs):
        (state,) = swap._states.values()
        seen.append((float(args[-1]["sigmas"].max()), round(LATE + state.strengths[0].value, 4)))
        return executor(x, t, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "log", wrapper)
    return clone, seen


def check_log(seen):
    """Check each evaluation's strength against the rule, and that both strengths occurred."""
    assert [strength for _, strength in seen] == [LATE if sigma <= LATE_BELOW else EARLY for sigma, _ in seen]
    assert {strength for _, strength in seen} == {EARLY, LATE}


def run_node(node, *args, **options):
    """First output of a node of the host, which older versions have in their first API."""
    if hasattr(node, "execute"):
        return node.execute(*args, **options).args[0]
    return getattr(node(), node.FUNCTION)(*args, **options)[0]


def advanced(model, sampler="euler", cfg=5.0, batch=1, frames=3, positive=None):
    """Latents of SamplerCustomAdvanced with a CFGGuider."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    texts = [random_variants._draw(1, 7, random_variants.TEXT_DIM, seed=seed) for seed in (4, 5)]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or [[texts[0], {}]], [[texts[1], {}]])
    guider.set_cfg(cfg)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    empty = torch.zeros(batch, 16, frames, random_variants.HEIGHT, random_variants.WIDTH)
    with torch.inference_mode():
        return run_node(
            SamplerCustomAdvanced, Noise_RandomNoise(7), guider, comfy.samplers.sampler_object(sampler),
            sigmas, {"samples": empty},
        )["samples"]  # fmt: skip


@pytest.mark.parametrize(
    ("sampler", "cfg", "batch"),
    [
        ("euler", 5.0, 1),
        ("uni_pc", 5.0, 1),
        ("res_multistep", 5.0, 1),
        ("dpmpp_2m", 5.0, 1),
        ("lcm", 1.0, 1),
        ("euler", 1.0, 2),
        ("euler", 5.0, 2),
    ],
)
def test_samplers_guidance_and_batches(model, factors, sampler, cfg, batch):
    ours, seen = logged(applied(model, factors))
    result = advanced(ours, sampler, cfg, batch)
    assert len(seen) >= STEPS
    check_log(seen)
    exact = advanced(reference(model, [(factors, EARLY, LATE)], LATE_BELOW), sampler, cfg, batch)
    assert difference(result, exact) < EXACT
    assert leftovers(model) == []


def same_with(model, factors, add, **options):
    """Check that a node behind our loader gives what it gives behind overwritten weights; return our log."""
    ours, seen = logged(add(applied(model, factors)))
    result = advanced(ours, **options)
    exact = advanced(add(reference(model, [(factors, EARLY, LATE)], LATE_BELOW)), **options)
    assert difference(result, exact) < EXACT
    return seen


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
def test_caches_that_skip_whole_evaluations(model, factors, name):
    import comfy_extras.nodes_easycache as nodes

    node = getattr(nodes, name, None)
    if node is None:
        pytest.skip(f"This version of ComfyUI has no {name}.")
    computed = same_with(model, factors, lambda m: run_node(node, m, 0.9, 0.1, 0.8, False), cfg=1.0)
    assert 0 < len(computed) < STEPS
    strengths = [(sigma, LATE if sigma <= LATE_BELOW else EARLY) for sigma, _ in computed]
    assert computed == strengths


def test_context_windows(model, factors):
    from comfy_extras.nodes_context_windows import WanContextWindowsManualNode

    def add(m):
        values = m, 9, 4, "standard_static", 1, False, "pyramid", False
        takes = inspect.signature(WanContextWindowsManualNode.execute).parameters
        return run_node(WanContextWindowsManualNode, *values[: None if "freenoise" in takes else -1])

    seen = same_with(model, factors, add, frames=5)
    check_log(seen)
    assert len(seen) > STEPS  # more than one window in each step


@pytest.mark.parametrize("name", ["SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple"])
def test_skip_layer_guidance(model, factors, name, caplog):
    import comfy_extras.nodes_slg as nodes

    options = {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
    if name == "SkipLayerGuidanceDiT":
        options["scale"] = 3.0
    check_log(same_with(model, factors, lambda m: run_node(getattr(nodes, name), m, **options)))
    assert "skipped" not in caplog.text


def test_normalized_attention_guidance(model, factors):
    nodes = pytest.importorskip("comfy_extras.nodes_nag")
    check_log(same_with(model, factors, lambda m: run_node(nodes.NAGuidance, m, 5.0, 0.5, 1.5)))


def test_patches_on_the_outputs_of_both_attentions(model, factors):
    """As nodes that reweight an attention put them there."""

    def add(m):
        m = m.clone()
        m.set_model_attn1_patch(lambda args: args["x"] * 0.9)
        m.set_model_patch(lambda args: args["x"] * 1.05, "attn2_patch")
        return m

    check_log(same_with(model, factors, add))


@pytest.mark.parametrize("ours_first", [True, False], ids=["before", "after"])
def test_blocks_that_are_compiled_one_by_one(model, factors, ours_first):
    """Traced by dynamo, run by eager kernels; our loader before and after the node that compiles."""
    torch_helpers = pytest.importorskip("comfy_api.torch_helpers")

    def compiled(m):
        m = m.clone()
        keys = [f"diffusion_model.blocks.{i}" for i in range(VARIANT.blocks)]
        torch_helpers.set_torch_compile_wrapper(model=m, backend="eager", keys=keys)
        return m

    ours = compiled(applied(model, factors)) if ours_first else applied(compiled(model), factors)
    exact = advanced(reference(model, [(factors, EARLY, LATE)], LATE_BELOW), cfg=1.0)
    assert difference(advanced(ours, cfg=1.0), exact) < EXACT
    assert leftovers(model) == []


def test_two_stock_loras_around_two_of_our_loaders(model, factors):
    """An acceleration LoRA before, a style after, and two loaders of which each switches."""
    import comfy.sd

    every = ("q", "k", "v", "o", "ffn.0", "ffn.2")
    quick, style, motion = (random_variants.make_lora(VARIANT, every, seed) for seed in (11, 12, 13))

    def with_stock(m, pairs, strength):
        named = {f"diffusion_model.{n}.lora_A.weight": a for n, (a, _) in pairs.items()}
        named |= {f"diffusion_model.{n}.lora_B.weight": b for n, (_, b) in pairs.items()}
        return comfy.sd.load_lora_for_models(m, None, named, strength, 0)[0]

    ours = applied(applied(with_stock(model, quick, 0.5), factors), motion, 0.6, 0.2)
    ours = with_stock(ours, style, 0.3)
    wanted = [(quick, 0.5, 0.5), (factors, EARLY, LATE), (motion, 0.6, 0.2), (style, 0.3, 0.3)]
    exact = advanced(reference(model, wanted, LATE_BELOW), cfg=1.0)
    assert difference(advanced(ours, cfg=1.0), exact) < EXACT


def bypassed(linear, after: int):
    """A stand-in that, after some calls, computes a linear from its weight without calling it."""
    stand_in, calls = torch.nn.Identity(), []

    def forward(x):
        calls.append(1)
        if len(calls) <= after:
            return linear(x)
        return torch.nn.functional.linear(x, linear.weight, linear.bias)

    stand_in.forward = forward
    return stand_in


def test_a_layer_that_is_no_longer_called_later_in_the_run_stops_it(model, factors, monkeypatch):
    """As by a kernel that is chosen for some steps only."""
    attention = model.model.get_submodule("diffusion_model.blocks.1.self_attn")
    linear, real = attention.q, type(attention).forward
    stand_in = bypassed(linear, after=2)

    def forward(self, *args, **kwargs):
        if self is not attention:
            return real(self, *args, **kwargs)
        self._modules["q"] = stand_in
        try:
            return real(self, *args, **kwargs)
        finally:
            self._modules["q"] = linear

    monkeypatch.setattr(type(attention), "forward", forward)
    ours, seen = logged(applied(model, factors))
    with pytest.raises(RuntimeError, match=r"1 of 10 layers .*first blocks\.1\.self_attn\.q.*model_early"):
        advanced(ours, cfg=1.0)
    assert len(seen) == 3
    assert leftovers(model) == []


def test_a_block_that_is_replayed_without_its_linears_stops_the_run(model, factors, monkeypatch):
    """As a recorded CUDA graph does: the block has an output, and nothing in it is called."""
    block, recorded = model.model.diffusion_model.blocks[1], []
    real = type(block).forward

    def forward(self, x, *args, **kwargs):
        if self is not block:
            return real(self, x, *args, **kwargs)
        if not recorded:
            recorded.append(real(self, x, *args, **kwargs))
        return recorded[0].clone()

    monkeypatch.setattr(type(block), "forward", forward)
    with pytest.raises(RuntimeError, match=r"5 of 10 layers .*blocks\.1\."):
        advanced(applied(model, factors), cfg=1.0)
    assert len(recorded) == 1


def test_a_block_that_is_skipped_in_every_evaluation_is_told(model, factors, caplog):
    from comfy.model_patcher import set_model_options_patch_replace

    ours = applied(model, factors)
    ours.model_options = set_model_options_patch_replace(
        ours.model_options, lambda args, extra: args, "dit", "double_block", 1
    )
    with caplog.at_level(logging.WARNING, logger="smrabooth"):
        advanced(ours, cfg=1.0)
    assert "block(s) 1" in caplog.text


def test_fused_linears_are_named(factors):
    model = random_variants.load(VARIANT)
    attention = model.model.diffusion_model.blocks[1].self_attn
    for name in "qkv":
        delattr(attention, name)
    attention.qkv = torch.nn.Linear(random_variants.DIM, 3 * random_variants.DIM)
    with pytest.raises(ValueError, match=r"blocks\.1\.self_attn\.q.*blocks\.1\.self_attn\.qkv"):
        applied(model, factors)
