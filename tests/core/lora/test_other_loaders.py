"""Our LoRA files in other programs' loaders: each makes of them the weight change that we mean."""

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, PeftModel, get_peft_model

from smra_core.lora.adapter import init_lora
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.plan import MOTION, SUBJECT
from smra_core.lora.reader import load_lora
from smra_core.lora.writer import convert_lora, save_lora
from smra_core.standalone.diffusers_wan import DiffusersDenoiser
from smra_core.wan.module_names import to_diffusers_linear, to_native_linear

RANK, TOLERANCE = 4, 1e-6


def tiny_dit():
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, ffn_dim=16, num_layers=2, text_dim=8, freq_dim=8
    )


@pytest.fixture(params=[SUBJECT, MOTION], ids=["subject", "motion"])
def own(request, tmp_path):
    """A saved LoRA whose scale is not 1, and its pairs."""
    lora = init_lora(
        DiffusersDenoiser(tiny_dit()).spec, request.param, RANK, torch.Generator().manual_seed(0)
    )
    torch.manual_seed(1)
    for pair in lora.values():
        pair.b.data.normal_()
        pair.scale = 0.25
    save_lora(tmp_path / "own.safetensors", lora, LoraMetadata("subject", str(request.param), RANK))
    return lora, tmp_path


def changes_in(module):
    """Weight changes of all adapted linears, by native name."""
    found = {}
    for name, layer in module.named_modules():
        if hasattr(layer, "get_delta_weight"):
            (adapter,) = layer.lora_A
            found[to_native_linear(name.removeprefix("base_model.model."))] = layer.get_delta_weight(adapter)
    return found


def assert_same(found, lora):
    assert found.keys() == lora.keys()
    for name, pair in lora.items():
        assert (found[name] - pair.delta()).abs().max() <= TOLERANCE, name


# Not kohya's: diffusers 0.42 reads that dialect only where every linear of a block has a pair.
@pytest.mark.parametrize("dialect", ["comfyui", "diffusers"])
def test_diffusers_load_lora_weights_takes_every_module(own, dialect):
    lora, folder = own
    convert_lora(folder / "own.safetensors", folder / "there.safetensors", dialect)
    pipe = WanPipeline(None, None, None, None, tiny_dit())
    pipe.load_lora_weights(folder, weight_name="there.safetensors")
    assert_same(changes_in(pipe.transformer), lora)


def test_peft_takes_every_module(own):
    lora, folder = own
    convert_lora(folder / "own.safetensors", folder / "adapter", "peft")
    assert_same(changes_in(PeftModel.from_pretrained(tiny_dit(), folder / "adapter")), lora)


def test_peft_takes_pairs_of_different_ranks(own):
    lora, folder = own
    narrow = next(iter(lora))
    lora[narrow].a.data, lora[narrow].b.data = lora[narrow].a.data[:2], lora[narrow].b.data[:, :2]
    save_lora(folder / "own.safetensors", lora, LoraMetadata())
    convert_lora(folder / "own.safetensors", folder / "adapter", "peft")
    assert_same(changes_in(PeftModel.from_pretrained(tiny_dit(), folder / "adapter")), lora)
    back = load_lora(folder / "adapter").lora
    assert_same({name: pair.delta() for name, pair in back.items()}, lora)


def test_what_peft_saves_is_read_with_its_regular_expressions(own):
    lora, folder = own
    alphas = {r"blocks\.0\..*": 3.0, "blocks.1.attn1.*": 5.0}
    modules = [to_diffusers_linear(name) for name in lora]
    config = LoraConfig(r=RANK, lora_alpha=8, alpha_pattern=alphas, target_modules=modules, use_rslora=True)
    model = get_peft_model(tiny_dit(), config)
    torch.manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_()
    model.save_pretrained(folder / "adapter")
    assert_same(changes_in(model), load_lora(folder / "adapter").lora)


def test_an_adapter_is_written_with_the_same_configuration_each_time(own):
    lora, folder = own
    for name in ("first", "second"):
        convert_lora(folder / "own.safetensors", folder / name, "peft")
    first, second = (LoraConfig.from_pretrained(folder / name) for name in ("first", "second"))
    texts = [(folder / name / "adapter_config.json").read_text() for name in ("first", "second")]
    assert first == second and texts[0] == texts[1]
    assert (first.r, first.lora_alpha, first.inference_mode) == (RANK, RANK, True)
    assert first.target_modules == {to_diffusers_linear(name) for name in lora}


def test_what_diffusers_writes_comes_back_with_its_alpha(own):
    lora, folder = own
    pipe = WanPipeline(None, None, None, None, tiny_dit())
    pipe.load_lora_weights(folder, weight_name="own.safetensors")
    for layer in pipe.transformer.modules():
        if hasattr(layer, "get_delta_weight"):
            layer.scaling = dict.fromkeys(layer.scaling, 2.0)
    name = next(iter(pipe.transformer.peft_config))
    pipe.transformer.peft_config[name].lora_alpha = 2 * RANK
    pipe.transformer.save_lora_adapter(folder, adapter_name=name, weight_name="theirs.safetensors")
    back = load_lora(folder / "theirs.safetensors").lora
    assert_same({name: pair.delta() / 2 for name, pair in back.items()}, lora)
