"""Changes of further layers in a LoRA file, matched with the parameters of a model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from smra_core.lora.dialects import parse_further_key
from smra_core.lora.further_layers import match_further_layers
from smra_core.lora.reader import load_lora, parse_lora

DIM, RANK = 4, 2
SHAPES = {
    "blocks.0.self_attn.q.weight": (DIM, DIM),
    "blocks.0.self_attn.q.bias": (DIM,),
    "blocks.0.cross_attn.k_img.weight": (DIM, DIM),
    "blocks.0.norm3.weight": (DIM,),
    "head.head.weight": (6, DIM),
    "head.head.bias": (6,),
    "patch_embedding.weight": (DIM, 3, 1, 2, 2),
}


def pair(name, rows=DIM, value=1.0):
    return {
        f"{name}.lora_A.weight": torch.ones(RANK, DIM),
        f"{name}.lora_B.weight": torch.full((rows, RANK), value),
    }


OWN = pair("diffusion_model.blocks.0.self_attn.q")


def match(tensors, **choice):
    return match_further_layers(parse_lora(OWN | tensors, "foreign", **choice).further, SHAPES)


@pytest.mark.parametrize(
    ("key", "module", "factor"),
    [
        ("diffusion_model.head.head.lora_A.weight", "head.head", "a"),
        ("pipe.dit.blocks.0.norm3.diff", "blocks.0.norm3", "diff"),
        ("base_model.model.text_embedding.0.lora_B.weight", "text_embedding.0", "b"),
        ("lora_unet_head_head.lora_up.weight", "head_head", "b"),
        ("lora_unet_blocks_0_cross_attn_k_img.alpha", "blocks_0_cross_attn_k_img", "alpha"),
        ("transformer.blocks.0.attn1.to_q.diff_b", "blocks.0.self_attn.q", "diff_b"),
    ],
)
def test_names_are_read_in_every_dialect(key, module, factor):
    assert parse_further_key(key)[:2] == (module, factor)


@pytest.mark.parametrize("key", ["head.head.weight", "text_embedding.0.lora_A.bias", "a" * 600 + ".diff_b"])
def test_keys_without_an_ending_of_a_lora_are_none(key):
    assert parse_further_key(key) is None


def test_what_fits_is_used_and_the_rest_is_left_out():
    tensors = {
        **pair("diffusion_model.blocks.0.cross_attn.k_img"),
        **pair("diffusion_model.head.head", rows=6),
        **pair("diffusion_model.vace_blocks.0.ffn.0"),
        "diffusion_model.blocks.0.norm3.diff": torch.ones(DIM),
        "diffusion_model.blocks.0.norm3.diff_b": torch.ones(DIM),  # the model's norm has no bias
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(DIM),
        "diffusion_model.head.head.diff_b": torch.ones(DIM),  # of another width
        "diffusion_model.patch_embedding.diff": torch.ones(DIM, 3, 1, 2, 2),
    }
    found = match(tensors)
    assert found.pairs.keys() == {"blocks.0.cross_attn.k_img", "head.head"}
    assert found.changes.keys() == {
        "blocks.0.norm3.weight", "blocks.0.self_attn.q.bias", "patch_embedding.weight",
    }  # fmt: skip
    assert len(found.used) == 7 and not any("vace" in name for name in found.used)
    assert found.count_layers() == 4


@pytest.mark.parametrize("alpha, scale", [(None, 1.0), (1.0, 0.5)])
def test_the_scale_is_that_of_the_file(alpha, scale):
    tensors = pair("diffusion_model.head.head", rows=6, value=3.0)
    if alpha is not None:
        tensors["diffusion_model.head.head.alpha"] = torch.tensor(alpha)
    assert torch.equal(match(tensors).pairs["head.head"].delta(), torch.full((6, DIM), 3.0 * RANK * scale))


def test_the_scale_of_a_peft_configuration_holds_for_further_layers(tmp_path):
    pytest.importorskip("peft")
    names = ("base_model.model.blocks.0.self_attn.q", "base_model.model.head.head")
    save_file(pair(names[0]) | pair(names[1], rows=6), tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q", "head"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = match_further_layers(load_lora(tmp_path).further, SHAPES)
    assert torch.equal(found.pairs["head.head"].delta(), torch.full((6, DIM), 2.0 * RANK))


def test_a_change_of_a_whole_linear_is_a_pair_of_full_rank():
    diff = torch.arange(6.0 * DIM).reshape(6, DIM)
    assert torch.equal(match({"diffusion_model.head.head.diff": diff}).pairs["head.head"].delta(), diff)


def test_only_the_chosen_expert_is_used():
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, value in (("transformer", 1.0), ("transformer_2", 2.0))
        for name, tensor in (pair("blocks.0.self_attn.q") | pair("head.head", 6, value)).items()
    }
    for expert, value in (("high", 1.0), ("low", 2.0)):
        read = parse_lora(tensors, "both", expert=expert)
        assert match_further_layers(read.further, SHAPES).pairs["head.head"].b.unique() == value


@pytest.mark.parametrize("name", ["diff", "lora_B.weight"])
def test_a_change_that_is_not_finite_is_refused(name):
    broken = pair("diffusion_model.head.head", 6) | {
        "diffusion_model.blocks.0.norm3.diff": torch.ones(DIM),
        f"diffusion_model.{'blocks.0.norm3' if name == 'diff' else 'head.head'}.{name}": torch.full(
            (DIM,) if name == "diff" else (6, RANK), torch.nan
        ),
    }
    with pytest.raises(ValueError, match="NaN"):
        match(broken)
