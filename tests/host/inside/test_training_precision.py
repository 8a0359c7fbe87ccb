"""Gradients on the forms in which a checkpoint can be stored, and in the precision of a card."""

import pytest
import torch
from random_wan import TRAINED_FFN, dit_state, load_dit, pack, quantized
from training_gradients import errors, reference, trained, worst

STORED = {"stored fp8": torch.float8_e4m3fn, "stored fp16": torch.float16, "stored bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def state():
    return dit_state(ffn=TRAINED_FFN)


def dequantized(model, state):
    """The state that the host computes with, whatever it stores."""
    known = dict(model.model.diffusion_model.named_parameters())
    quantized_weights = {name: weight for name, weight in known.items() if hasattr(weight, "_layout_cls")}
    plain = {name: known[name].float() for name in state if name not in quantized_weights}
    return plain | {name: weight.dequantize().float() for name, weight in quantized_weights.items()}


def stored(folder, state, kind):
    """A MODEL of a file in one of the forms."""
    if kind in STORED:  # told so, as the host would widen them on a CPU
        return load_dit(folder, state, dtype=STORED[kind])
    formats = pytest.importorskip("comfy.quant_ops").QUANT_ALGOS
    if kind not in formats:
        pytest.skip(f"This host does not read {kind}.")
    return load_dit(folder, quantized(state, kind))


@pytest.mark.parametrize("kind", [*STORED, "float8_e4m3fn", "int8_tensorwise"])
def test_every_form_gives_the_gradients_of_what_it_stands_for(state, tmp_path, kind):
    model = stored(tmp_path, state, kind)
    weight = model.model.diffusion_model.blocks[0].self_attn.q.weight
    if kind in STORED:
        assert weight.dtype == STORED[kind]
    expected = reference(dequantized(model, state))
    found = trained(model)
    assert worst(found, expected) < 1e-4
    assert all(grad.dtype == torch.float32 for pair in found.values() for grad in pair)


@pytest.mark.parametrize("kind", ["stored fp16", "stored fp8"])
def test_a_card_that_multiplies_bfloat16_gives_nearly_the_same(state, tmp_path, monkeypatch, kind):
    """bfloat16 has 8 bits of mantissa: each factor is a few parts in a hundred off at most, and unbiased."""
    monkeypatch.setattr(pack("nodes.host.denoiser"), "choose_training_dtype", lambda device: torch.bfloat16)
    model = stored(tmp_path, state, kind)
    before = model.model.manual_cast_dtype
    found, expected = trained(model), reference(dequantized(model, state))
    off = errors(found, expected)
    assert max(off) < 0.1 and sum(off) / len(off) < 0.03
    assert max(off) > 1e-4  # or it was float32 after all
    assert all(grad.dtype == torch.float32 for pair in found.values() for grad in pair)
    assert model.model.manual_cast_dtype == before


def test_the_precision_is_the_cards_and_never_float16(monkeypatch):
    """Small gradients vanish in float16, and a scaler would be one more thing to resume bit for bit."""
    import comfy.model_management as management

    choose_training_dtype, card = pack("nodes.host.denoiser").choose_training_dtype, torch.device("cuda")
    for can, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(management, "should_use_bf16", lambda device, can=can: can)
        assert choose_training_dtype(card) == dtype
    assert choose_training_dtype(torch.device("cpu")) == torch.float32
