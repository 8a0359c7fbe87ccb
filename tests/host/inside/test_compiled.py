"""Compiled models: the LoRA is there, and a switch, other strengths or another file compile nothing anew."""

import pytest
import random_wan
import torch
from random_wan import difference, leftovers, reference, sample
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule

set_compile = pytest.importorskip("comfy_api.torch_helpers").set_torch_compile_wrapper
EXACT = 2e-4
FEW, LATE_BELOW = 4, 0.8
"""Levels 1, 0.75, 0.5, 0.25: the one nearest to 0.7 is 0.75."""


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def compiled(model):
    """Traced by dynamo, run by eager kernels: tracing is what can lose a LoRA."""
    clone = model.clone()
    set_compile(model=clone, backend="eager")
    return clone


def with_lora(model, factors, strengths):
    lora = {name: LoraPair(a, b) for name, (a, b) in factors.items()}
    return apply_loras(model, [ScheduledLora(lora, strengths)], StrengthSchedule(0.7), "on the fly").model


def test_base_lora_other_strengths_and_file_and_base_again(model, loras):
    """Without a reset in between: the order is what an artist does to one loaded model."""
    plain = compiled(model)
    base = sample(plain, steps=FEW)
    assert difference(base, sample(model, steps=FEW)) < EXACT

    def check(factors, early, late):
        ours = sample(with_lora(plain, factors, Strengths(early, late)), steps=FEW)
        assert (
            difference(ours, sample(reference(model, [(factors, early, late)], LATE_BELOW), steps=FEW))
            < EXACT
        )
        assert difference(ours, base) > 100 * EXACT

    check(loras[0], 0.4, 0.8)
    known = graphs()
    check(random_wan.lora_tensors(random_wan.SUBJECT_LAYERS, seed=9), 1.0, 0.2)
    assert graphs() == known
    assert torch.equal(sample(plain, steps=FEW), base)
    assert leftovers(model) == []


def test_a_layer_that_a_compiled_model_never_calls_is_an_error(model, loras, monkeypatch):
    torch._dynamo.reset()  # a graph of the test above would run the forward that is replaced here
    block = model.model.diffusion_model.blocks[1]
    monkeypatch.setattr(type(block), "forward", lambda self, x, *args, **kwargs: self.norm1(x))
    with pytest.raises(RuntimeError, match="cannot be reached"):
        sample(with_lora(compiled(model), loras[0], Strengths(0.4, 0.8)))
