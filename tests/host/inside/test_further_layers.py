"""LoRAs of other trainers with all layers: image inputs, norms, biases, embeddings and the head, on every WAN
variant, against overwritten weights.
"""

import pytest
import random_variants
import torch
from random_variants import BY_NAME, VARIANTS, sample
from random_wan import changed, difference, leftovers
from safetensors.torch import save_file
from smrabooth_pack.nodes.patching.apply_loras import AUTO, ON_THE_FLY, apply_loras
from smrabooth_pack.nodes.patching.chosen_lora import choose_lora, describe_choice
from smrabooth_pack.nodes.patching.layer_shapes import read_layer_shapes
from smrabooth_pack.smra_core.lora.further_layers import match_further_layers
from smrabooth_pack.smra_core.lora.plan import ALL_LAYERS, SUBJECT
from smrabooth_pack.smra_core.lora.reader import parse_lora
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from test_variants import without_kept_text

EXACT, STEPS, LATE_BELOW, RANK = 1e-4, 2, 0.51, 2
STRENGTHS = Strengths(0.4, 0.8)
COMMON = ("patch_embedding", "text_embedding.0", "time_embedding.2", "time_projection.1", "head.head")
"""Layers outside of the blocks that every variant but those of other nets has."""


def foreign_lora(state, flat=False):
    """A LoRA of another trainer on every linear, and changes of all norms, convolutions and biases."""
    tensors = {}
    for seed, (name, value) in enumerate(state.items()):
        layer, _, kind = name.rpartition(".")
        key = "lora_unet_" + layer.replace(".", "_") if flat else f"diffusion_model.{layer}"
        down, up = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
        draw = random_variants._draw
        if kind == "bias":
            tensors[f"{key}.diff_b"] = 0.1 * draw(*value.shape, seed=seed)
        elif kind == "weight" and value.ndim == 2:
            rows, columns = value.shape
            tensors[f"{key}.{down}.weight"] = draw(RANK, columns, seed=seed) / columns**0.5
            tensors[f"{key}.{up}.weight"] = 0.5 * draw(rows, RANK, seed=seed + 1)
        elif kind == "weight":
            size = value[0].numel() ** -0.5 if value.ndim > 1 else 0.3
            tensors[f"{key}.diff"] = size * draw(*value.shape, seed=seed)
    return tensors


def dense_changes(tensors, used):
    """The change of each parameter at strength 1, from the tensors of a file that are used."""
    changes = {}
    for key in used:
        layer, _, kind = key.removeprefix("diffusion_model.").rpartition(".")
        if kind == "diff":
            changes[f"{layer}.weight"] = tensors[key]
        elif kind == "diff_b":
            changes[f"{layer}.bias"] = tensors[key]
        elif key.endswith("lora_A.weight"):
            layer = layer.removesuffix(".lora_A")
            changes[f"{layer}.weight"] = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    return changes


def read_all(model, tensors):
    read = parse_lora(tensors, "foreign")
    return read, match_further_layers(read.further, read_layer_shapes(model))


def expected_keys(model, tensors):
    """Keys of the layers of the kinds that are served, by torch's classes of the loaded model."""
    kinds = (torch.nn.Linear, torch.nn.Conv3d, torch.nn.LayerNorm, torch.nn.RMSNorm)
    modules = dict(model.model.diffusion_model.named_modules())
    ends = (".lora_A.weight", ".lora_B.weight", ".diff", ".diff_b")

    def find_layer(key):
        end = next(end for end in ends if key.endswith(end))
        return modules[key.removeprefix("diffusion_model.").removesuffix(end)]

    return {key for key in tensors if isinstance(find_layer(key), kinds)}


@pytest.mark.parametrize("name", [variant.name for variant in VARIANTS])
def test_all_layers_of_a_foreign_lora_equal_overwritten_weights(load_variant, name):
    variant, (model, state) = BY_NAME[name], load_variant(name)
    tensors = foreign_lora(state)
    read, further = read_all(model, tensors)
    used = further.used | (set(tensors) - set(read.ignored))
    assert used == expected_keys(model, tensors)
    assert {f"diffusion_model.{layer}.diff_b" for layer in COMMON} <= used
    sampler = "ar_video" if name == "CausalAR" else "euler"
    wanted = without_kept_text(changed(model, [(dense_changes(tensors, used), 0.4, 0.8)], LATE_BELOW))
    exact = sample(variant, wanted, STEPS, sampler)
    only_blocks = apply_loras(model, [ScheduledLora(read.lora, STRENGTHS)], StrengthSchedule(0.7)).model
    assert difference(sample(variant, only_blocks, STEPS, sampler), exact) > 100 * EXACT
    for constant in (ON_THE_FLY, AUTO) if name in ("T2V", "I2V 2.1") else (ON_THE_FLY,):
        result = apply_loras(
            model,
            [ScheduledLora(read.lora, STRENGTHS)],
            StrengthSchedule(0.7),
            constant,
            [further],
        )
        assert difference(sample(variant, result.model, STEPS, sampler), exact) < EXACT
    assert leftovers(model) == []


def test_kohyas_names_are_matched_with_the_model(load_variant):
    model, state = load_variant("I2V 2.1")
    (dotted, _), (flat, _) = (read_all(model, foreign_lora(state, flat)) for flat in (False, True))
    first, second = (read_all(model, foreign_lora(state, flat))[1] for flat in (False, True))
    assert first.pairs.keys() == second.pairs.keys() and first.changes.keys() == second.changes.keys()
    assert "blocks.0.cross_attn.k_img" in second.pairs and "img_emb.proj.1" in second.pairs
    assert dotted.lora.keys() == flat.lora.keys()


def test_the_loader_uses_further_layers_with_all_layers_alone_and_says_so(
    load_variant, tmp_path, monkeypatch
):
    import folder_paths

    model, state = load_variant("I2V 2.1")
    tensors = foreign_lora(state)
    tensors["diffusion_model.vace_blocks.0.ffn.0.lora_A.weight"] = torch.ones(2, 2)
    tensors["diffusion_model.blocks.0.modulation.diff"] = torch.ones(1, 6, random_variants.DIM)
    save_file(tensors, tmp_path / "foreign.safetensors")
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda _, name: str(tmp_path / name))
    whole, paper = (
        choose_lora("subject", "foreign.safetensors", None, plan, model) for plan in (ALL_LAYERS, SUBJECT)
    )
    assert not paper.further.used
    assert {"blocks.1.cross_attn.k_img", "head.head"} <= whole.further.pairs.keys()
    assert {"blocks.1.norm3.weight", "blocks.0.self_attn.q.bias"} <= whole.further.changes.keys()
    text = "\n".join(describe_choice(whole, ScheduledLora({}, STRENGTHS), 0.0))
    assert f"{len(tensors) - 2} of {len(tensors)} tensors are used" in text
    assert "k_img" in text and "vace_blocks" in text and "modulations: 1" in text
    assert "also used" not in "\n".join(describe_choice(paper, ScheduledLora({}, STRENGTHS), 0.0))
