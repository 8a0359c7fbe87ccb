"""The Sparse LoRA Loader on every form in which the host stores and moves a checkpoint, beside those of
test_quantized.py (two formats of 8 bits) and test_gguf.py.
"""

import json

import pytest
import random_wan
import torch
from random_wan import difference, leftovers, reference, sample
from smrabooth_pack.nodes.patching.apply_loras import AUTO, MERGE, ON_THE_FLY, apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule

quant_ops = pytest.importorskip("comfy.quant_ops")
SUBJECT, MOTION, LATE_BELOW = Strengths(0.4, 0.8), Strengths.from_value(1.0), 0.68
FEW = 3
"""Levels 1, 0.667, 0.333: the one nearest to 0.7 is 0.667."""
QUANTIZED = {
    "int8_convrot": ("int8_tensorwise", {"per_channel": True, "convrot": True}, {"convrot": True}),
    "int8 by row": ("int8_tensorwise", {"per_channel": True}, {}),
    "float8_e5m2": ("float8_e5m2", {}, {}),
    "nvfp4": ("nvfp4", {}, {}),
    "mxfp8": ("mxfp8", {}, {}),
    "convrot_w4a4": ("convrot_w4a4", {}, {}),
    "asym_w4a8_int8": ("asym_w4a8_int8", {}, {}),
}
"""The host's name of a form, arguments of its quantizer, and entries of the layer's configuration."""


def scheduled(loras):
    return [
        ScheduledLora({name: LoraPair(a, b) for name, (a, b) in factors.items()}, strengths)
        for factors, strengths in zip(loras, (SUBJECT, MOTION), strict=True)
    ]


def check(packed, plain, loras, constant=AUTO, tolerance=1e-3):
    """Check a switched run on `packed` against overwritten weights on `plain`, which holds the same values
    in float32; the host's own difference between the two is the floor.
    """
    base, plain_base = sample(packed, steps=FEW), sample(plain, steps=FEW)
    wanted = reference(plain, [(loras[0], 0.4, 0.8), (loras[1], 1.0, 1.0)], LATE_BELOW)
    exact = sample(wanted, steps=FEW)
    result = apply_loras(packed, scheduled(loras), StrengthSchedule(0.7), constant)
    ours = sample(result.model, steps=FEW)
    floor, effect = difference(base, plain_base), difference(exact, plain_base)
    assert difference(ours, exact) < 3 * floor + tolerance
    assert difference(ours - base, exact - plain_base) < 0.5 * effect + floor
    assert leftovers(packed) == []
    assert torch.equal(sample(packed, steps=FEW), base)
    return result.merged


def block_weights(state):
    names = {f"{name}.weight" for name in random_wan.block_linears()}
    return {name: weight for name, weight in state.items() if name in names}


def pack(state, form):
    """The checkpoint in one of the host's formats, and in float32 with the values it stands for."""
    kind, arguments, config = QUANTIZED[form]
    if kind not in quant_ops.QUANT_ALGOS:
        pytest.skip(f"This version of ComfyUI has no {kind}.")
    layout = quant_ops.get_layout_class(quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"])
    packed, plain = dict(state), dict(state)
    for name, weight in block_weights(state).items():
        codes, params = layout.quantize(weight.contiguous(), **arguments)
        for suffix, tensor in layout.state_dict_tensors(codes, params).items():
            packed[f"{name}{suffix}"] = tensor
        text = json.dumps({"format": kind, **config}).encode()
        packed[f"{name.removesuffix('.weight')}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
        plain[name] = layout.dequantize(codes, params).float()
    return packed, plain


@pytest.mark.parametrize("form", QUANTIZED)
def test_a_switched_run_on_a_packed_checkpoint(state, loras, form):
    packed, plain = pack(state, form)
    assert check(random_wan.load(packed), random_wan.load(plain), loras) == (0.0, 0.0)


@pytest.mark.parametrize("form", ["int8_convrot", "int8 by row", "float8_e5m2"])
def test_the_command_line_reads_back_what_comfyui_stores(state, form):
    """The core has its own way back from these forms, without ComfyUI's packages."""
    from smrabooth_pack.smra_core.wan.stored_form import restore_values

    kind, arguments, config = QUANTIZED[form]
    if kind not in quant_ops.QUANT_ALGOS:
        pytest.skip(f"This version of ComfyUI has no {kind}.")
    layout = quant_ops.get_layout_class(quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"])
    for name, weight in block_weights(state).items():
        codes, params = layout.quantize(weight.contiguous(), **arguments)
        group = params.convrot_groupsize if config else 0
        ours, theirs = (
            restore_values(codes, params.scale, torch.float32, group),
            layout.dequantize(codes, params),
        )
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max(), name
        assert (ours - weight).norm() < 0.1 * weight.norm()


def test_a_merge_into_rotated_weights_is_made_on_the_values_that_they_stand_for(state, loras):
    """A change added to the rotated numbers themselves would be another LoRA."""
    packed, plain = pack(state, "int8_convrot")
    model = random_wan.load(packed)
    result = apply_loras(model, scheduled(loras)[1:], StrengthSchedule(0.7), MERGE)
    assert result.merged == (1.0,)
    exact = sample(reference(random_wan.load(plain), [(loras[1], 1.0, 1.0)], LATE_BELOW), steps=FEW)
    base = sample(model, steps=FEW)
    merged = sample(result.model, steps=FEW)
    assert difference(merged, exact) < 0.3 * difference(base, exact)
    assert torch.equal(sample(model, steps=FEW), base)


@pytest.mark.parametrize("full_precision", [False, True], ids=["fp8 products", "full precision"])
def test_the_older_kind_of_scaled_fp8(state, loras, full_precision):
    packed = {"scaled_fp8": torch.zeros(2 if full_precision else 0, dtype=torch.float8_e4m3fn)}
    for name, tensor in random_wan.quantized(state, "float8_e4m3fn").items():
        if not name.endswith("comfy_quant"):
            packed[name.replace("weight_scale", "scale_weight")] = tensor
    plain = dict(state)
    for name in block_weights(state):
        scale = packed[name.replace("weight", "scale_weight")]
        plain[name] = packed[name].float() * scale
    assert check(random_wan.load(packed), random_wan.load(plain), loras) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_checkpoint_of_16_bits(state, loras, dtype):
    """A merged LoRA is rounded to the 16 bits of the weights, as by ComfyUI's own loader."""
    rounded = {name: tensor.to(dtype) for name, tensor in state.items()}
    plain = random_wan.load({name: tensor.float() for name, tensor in rounded.items()}, torch.float32)
    stored = random_wan.load(rounded, dtype)
    assert stored.model.get_submodule("diffusion_model.blocks.0.ffn.0").weight.dtype == dtype
    assert check(stored, plain, loras, ON_THE_FLY) == (0.0, 0.0)
    assert check(stored, plain, loras, tolerance=20 * torch.finfo(dtype).eps) == (0.8, 1.0)


@pytest.mark.parametrize("form", ["float32", "int8_convrot"])
def test_a_model_that_is_streamed_part_by_part(state, loras, monkeypatch, form):
    """As on a small card: the host moves and patches most weights when their layer is called."""
    from comfy.model_patcher import ModelPatcher

    packed, plain = (state, state) if form == "float32" else pack(state, form)
    model, whole = random_wan.load(packed), random_wan.load(plain)
    exact = sample(reference(whole, [(loras[0], 0.4, 0.8), (loras[1], 1.0, 1.0)], LATE_BELOW), steps=FEW)
    floor = difference(sample(model, steps=FEW), sample(whole, steps=FEW))
    result, load, streamed = (
        apply_loras(model, scheduled(loras), StrengthSchedule(0.7)),
        ModelPatcher.load,
        [],
    )

    def load_little(self, device, lowvram_model_memory=0, *args, full_load=False, **kwargs):
        load(self, device, 200_000, *args, full_load=False, **kwargs)
        streamed.append(self.model.model_lowvram)

    model.detach()
    monkeypatch.setattr(ModelPatcher, "load", load_little)
    ours = sample(result.model, steps=FEW)
    assert streamed and all(streamed)
    assert difference(ours, exact) < 3 * floor + 1e-3
    result.model.detach()
