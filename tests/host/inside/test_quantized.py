"""The Sparse LoRA Loader on checkpoints of less than 16 bits, as the host stores them."""

import pytest
import random_wan
import torch
from random_wan import difference, leftovers, reference, sample
from smrabooth_pack.nodes.patching.apply_loras import MERGE, apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule

quant_ops = pytest.importorskip("comfy.quant_ops")
FORMATS = [kind for kind in ("float8_e4m3fn", "int8_tensorwise") if kind in quant_ops.QUANT_ALGOS]
SCHEDULE, LATE_BELOW = StrengthSchedule(0.7), 0.75
SUBJECT, MOTION = Strengths(0.4, 0.8), Strengths.from_value(1.0)


def scheduled(factors, strengths):
    return ScheduledLora({name: LoraPair(a, b) for name, (a, b) in factors.items()}, strengths)


def pair(model, loras, constant="auto"):
    both = [scheduled(loras[0], SUBJECT), scheduled(loras[1], MOTION)]
    return apply_loras(model, both, SCHEDULE, constant)


def unpacked(state, kind):
    """The checkpoint in float32 with exactly the values that the packed one stands for."""
    packed = random_wan.quantized(state, kind)
    named = {name: tensor for name, tensor in packed.items() if not name.endswith(("_scale", "comfy_quant"))}
    for name in random_wan.block_linears():
        named[f"{name}.weight"] = packed[f"{name}.weight"].float() * packed[f"{name}.weight_scale"]
    return named


def packed_model(state, kind):
    return random_wan.load(random_wan.quantized(state, kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_switched_run_on_a_quantized_checkpoint(state, loras, kind):
    """The host itself differs from the unpacked weights (it rounds activations for INT8): that is the
    floor.
    """
    packed, plain = packed_model(state, kind), random_wan.load(unpacked(state, kind))
    exact = sample(reference(plain, [(loras[0], 0.4, 0.8), (loras[1], 1.0, 1.0)], LATE_BELOW))
    base = sample(packed)
    floor = difference(base, sample(plain))
    result = pair(packed, loras)
    assert result.merged == (0.0, 0.0)
    ours = sample(result.model)
    assert difference(ours, exact) < 3 * floor + 1e-3
    assert difference(ours, base) > 10 * difference(ours, exact)
    assert leftovers(packed) == []
    assert torch.equal(sample(packed), base)


@pytest.mark.parametrize("kind", FORMATS)
def test_merging_on_request_rounds_the_weights_again(state, loras, kind):
    packed, plain = packed_model(state, kind), random_wan.load(unpacked(state, kind))
    exact = sample(reference(plain, [(loras[0], 0.4, 0.8), (loras[1], 1.0, 1.0)], LATE_BELOW))
    merged = pair(packed, loras, MERGE)
    assert merged.merged == (0.0, 1.0)
    on_the_fly = difference(sample(pair(packed, loras).model), exact)
    assert on_the_fly < difference(sample(merged.model), exact)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_lora_on_the_down_projection_alone_is_not_lost(state, kind):
    """The host computes INT8's ffn.2 from its weight, without calling the module."""
    factors = random_wan.lora_tensors(("ffn.2",), seed=5, size=2.0)
    packed, plain = packed_model(state, kind), random_wan.load(unpacked(state, kind))
    exact = sample(reference(plain, [(factors, 0.4, 0.8)], LATE_BELOW))
    ours = sample(apply_loras(packed, [scheduled(factors, SUBJECT)], SCHEDULE).model)
    assert difference(ours, sample(packed)) > 5 * difference(ours, exact)


@pytest.mark.parametrize("kind", FORMATS)
def test_two_loaders_in_a_row_both_reach_the_down_projection(state, kind):
    first, second = (random_wan.lora_tensors(("ffn.0", "ffn.2"), seed=s, size=2.0) for s in (5, 6))
    packed = packed_model(state, kind)
    one = apply_loras(packed, [scheduled(first, SUBJECT), scheduled(second, Strengths(1.0, 0.5))], SCHEDULE)
    single = apply_loras(packed, [scheduled(first, SUBJECT)], SCHEDULE).model
    chained = apply_loras(single, [scheduled(second, Strengths(1.0, 0.5))], SCHEDULE).model
    # Of ten steps, those after the first round other values to 8 bits: factors that differ by a millionth end
    # as far apart as the two orders of adding do.
    both, joined, without = (sample(each, steps=1) for each in (chained, one.model, single))
    assert difference(both, joined) < 2e-3 * joined.abs().max() < 0.1 * difference(both, without)
    assert leftovers(packed) == []


def test_a_checkpoint_stored_in_fp8_and_computed_in_32_bits(state, loras):
    stored, plain = random_wan.load(state, torch.float8_e4m3fn), random_wan.load(state)
    assert stored.model.get_submodule("diffusion_model.blocks.0.ffn.0").weight.dtype == torch.float8_e4m3fn
    exact_values = plain.model.diffusion_model.state_dict()
    with torch.inference_mode():
        for name, tensor in stored.model.diffusion_model.state_dict().items():
            exact_values[name].copy_(tensor.float())
    exact = sample(reference(plain, [(loras[0], 0.4, 0.8), (loras[1], 1.0, 1.0)], LATE_BELOW))
    result = pair(stored, loras)
    assert result.merged == (0.0, 0.0)
    assert difference(sample(result.model), exact) < 2e-4
