"""The Sparse LoRA Loader before and after the host's own LoRA loaders, on the same linears."""

import pytest
import random_wan
import torch
from random_wan import difference, leftovers, reference, sample
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule

EXACT = 2e-4
SUBJECT, LATE_BELOW = Strengths(0.4, 0.8), 0.75
OTHER_STRENGTH = 0.7


@pytest.fixture
def other():
    """An artist's style LoRA: on ffn.0, which the subject's LoRA is on too, and beside it."""
    return random_wan.lora_tensors(("ffn.0", "v"), seed=11)


def with_subject(model, loras):
    lora = {name: LoraPair(a, b) for name, (a, b) in loras[0].items()}
    return apply_loras(model, [ScheduledLora(lora, SUBJECT)], StrengthSchedule(0.7)).model


def with_stock(model, factors, bypass: bool):
    """The host's LoraLoader, or its LoraLoaderBypass."""
    import comfy.sd

    named = {}
    for name, (a, b) in factors.items():
        named[f"diffusion_model.{name}.lora_A.weight"], named[f"diffusion_model.{name}.lora_B.weight"] = a, b
    if not bypass:
        return comfy.sd.load_lora_for_models(model, None, named, OTHER_STRENGTH, 0)[0]
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("This version of ComfyUI has no bypass loader.")
    return comfy.sd.load_bypass_lora_for_models(model, None, named, OTHER_STRENGTH, 0)[0]


@pytest.mark.parametrize("ours_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("bypass", [False, True], ids=["LoraLoader", "LoraLoaderBypass"])
def test_both_act_twice_in_a_row_and_then_the_model_is_as_before(state, loras, other, bypass, ours_first):
    model = random_wan.load(state)
    base = sample(model)
    exact = sample(
        reference(model, [(loras[0], 0.4, 0.8), (other, OTHER_STRENGTH, OTHER_STRENGTH)], LATE_BELOW)
    )
    if ours_first:
        both = with_stock(with_subject(model, loras), other, bypass)
    else:
        both = with_subject(with_stock(model, other, bypass), loras)
    first = sample(both)
    assert difference(first, exact) < EXACT
    assert torch.equal(sample(both), first)
    assert torch.equal(sample(model), base)
    # The bypass loader itself puts a linear's own forward back as an attribute.
    assert bypass or leftovers(model) == []
