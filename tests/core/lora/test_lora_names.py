"""Names of a LoRA file's tensors: under any prefix, of two experts or adapters, and what is not used."""

import pytest
import torch
from safetensors.torch import save_file

from smra_core.lora.account import name_unused_kind
from smra_core.lora.adapter import LoraPair
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.reader import load_lora, parse_lora
from smra_core.lora.report import describe_lora, render_report
from smra_core.lora.writer import convert_lora, save_lora
from smra_core.wan.module_names import to_diffusers_linear
from smra_core.wan.spec import WanSpec

SPEC = WanSpec("tiny", blocks=2, dim=6, ffn=10, heads=1)
RANK = 3
QUERY = "blocks.0.self_attn.q"


def make_pairs(form, names=None, first="lora_A.weight", second="lora_B.weight", value=1.0):
    """Tensors of pairs for linears, each under the name that `form` makes of its native name."""
    tensors = {}
    for name in names or SPEC.linear_names():
        out_features, in_features = SPEC.linear_shape(name)
        tensors[f"{form(name)}.{first}"] = torch.ones(RANK, in_features)
        tensors[f"{form(name)}.{second}"] = torch.full((out_features, RANK), value)
    return tensors


def flatten(name):
    return name.replace(".", "_")


KNOWN = {
    **{
        prefix: lambda name, prefix=prefix: prefix + name
        for prefix in (
            "model.diffusion_model.",
            "base_model.model.model.",
            "transformer.base_model.model.",
            "transformer.transformer.",
            "unet.",
            "dit.",
            "pipe.dit2.",
            "transformer_2.",
            "low_noise_model.",
            "module.",
            "module.diffusion_model.",
            "_orig_mod.",
            "generator.model.",
            "pipe.transformer.",
            "lora_unet.",
            "base_model.model._fsdp_wrapped_module.",
            "Transformer.",
        )
    },
    "wrapped blocks": lambda name: name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."),
    "wrapped linears": lambda name: f"diffusion_model.{name.replace('self_attn.', 'self_attn._orig_mod.')}",
    **{
        prefix: lambda name, prefix=prefix: prefix + flatten(name)
        for prefix in (
            "lora_unet_",
            "lora_unet__",
            "lycoris_",
            "lycoris_transformer_",
            "lora_transformer_",
            "lora_transformer_2_",
            "lora_dit_",
            "lora_unet_diffusion_model_",
            "lora_unet_model_diffusion_model_",
            "",
        )
    },
}


@pytest.mark.parametrize("diffusers", [False, True], ids=["native", "diffusers"])
@pytest.mark.parametrize("prefix", KNOWN)
def test_any_stack_of_known_words_is_a_prefix(prefix, diffusers):
    form = KNOWN[prefix]
    tensors = make_pairs((lambda name: form(to_diffusers_linear(name))) if diffusers else form)
    loaded = parse_lora(tensors, "dog")
    assert list(loaded.lora) == SPEC.linear_names() and not loaded.ignored
    assert loaded.account == "All 40 tensors are used, for 20 linears of WAN's blocks."


@pytest.mark.parametrize(
    "first, second", [("lora_a.weight", "lora_b.weight"), ("lora.down.weight", "lora.up.weight")]
)
def test_spellings_of_factors(first, second):
    tensors = make_pairs(lambda name: f"diffusion_model.{name}", first=first, second=second)
    assert len(parse_lora(tensors, "dog").lora) == 20


@pytest.mark.parametrize("prefix", ["my_wan.", "diffusion_model.spam.", "lora_spam_"])
def test_an_unknown_prefix_is_named(prefix):
    form = (lambda name: prefix + flatten(name)) if prefix.endswith("_") else (lambda name: prefix + name)
    with pytest.raises(ValueError, match=f"names of WAN blocks under an unknown prefix '{prefix}'"):
        parse_lora(make_pairs(form), "dog")
    loaded = parse_lora(make_pairs(form) | make_pairs(lambda name: name, [QUERY]), "dog")
    assert list(loaded.lora) == [QUERY]
    assert f"WAN blocks under the unknown prefix '{prefix}': 40, such as" in loaded.account


@pytest.mark.parametrize("prefix", ["text_encoder.", "lora_te_", "lora_te1_text_model_encoder_"])
def test_the_blocks_of_a_text_encoder_are_no_wan_blocks(prefix):
    form = (lambda name: prefix + flatten(name)) if prefix.endswith("_") else (lambda name: prefix + name)
    with pytest.raises(ValueError, match="has no LoRA of a WAN block"):
        parse_lora(make_pairs(form), "dog")
    loaded = parse_lora(make_pairs(form) | make_pairs(lambda name: name, [QUERY]), "dog")
    assert "Not used: a text encoder: 40, such as" in loaded.account


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale", "comfy_quant"])
def test_factors_with_a_scale_of_their_own_are_refused(ending):
    tensors = make_pairs(lambda name: name, [QUERY]) | {f"{QUERY}.lora_A.{ending}": torch.ones(())}
    with pytest.raises(ValueError, match="a quantized LoRA with scales of its own, not a plain LoRA"):
        parse_lora(tensors, "dog")


@pytest.mark.parametrize("prefix", ["diffusion_model.vace_", "vace_", "lora_unet_vace_", "transformer.vace_"])
def test_blocks_of_another_kind_are_no_wan_blocks(prefix):
    form = (
        (lambda name: prefix + flatten(name)) if prefix == "lora_unet_vace_" else (lambda name: prefix + name)
    )
    with pytest.raises(ValueError, match="has no LoRA of a WAN block"):
        parse_lora(make_pairs(form), "dog")
    loaded = parse_lora(make_pairs(form) | make_pairs(lambda name: name, [QUERY]), "dog")
    assert loaded.account.startswith(
        "2 of 42 tensors are used, for 1 linear of WAN's blocks. Not used: other blocks than WAN's own "
        f"(vace_blocks): 40, such as {prefix}"
    )


TWO_EXPERTS = {
    "diffusers": ("transformer.", "transformer_2."),
    "diffsynth": ("pipe.dit.", "pipe.dit2."),
    "authors": ("high_noise_model.", "low_noise_model."),
    "named halfway": ("high_noise_model.", ""),
}


@pytest.mark.parametrize("kind", TWO_EXPERTS)
def test_two_experts_in_one_file_are_asked_about(kind, tmp_path):
    high, low = TWO_EXPERTS[kind]
    tensors = make_pairs(lambda name: high + name, value=2.0) | make_pairs(lambda name: low + name, value=3.0)
    save_file(tensors, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match="two experts of Wan 2.2.* convert FILE NEW_FILE --expert low"):
        load_lora(tmp_path / "both.safetensors")
    for expert, value in (("high", 2.0), ("low", 3.0)):
        loaded = load_lora(tmp_path / "both.safetensors", SPEC, expert=expert)
        assert loaded.lora.keys() == set(SPEC.linear_names()) and len(loaded.ignored) == 40
        assert all(pair.b.unique() == value for pair in loaded.lora.values())
        assert "expert of Wan 2.2: 40" in loaded.account and "used is the" in loaded.notes[0]
        convert_lora(tmp_path / "both.safetensors", tmp_path / "one.safetensors", "comfyui", expert)
        assert load_lora(tmp_path / "one.safetensors").lora[QUERY].b.unique() == value


def test_one_expert_is_told_and_the_other_one_is_not_taken_for_it():
    tensors = make_pairs(lambda name: f"transformer_2.{to_diffusers_linear(name)}")
    assert (
        "one expert of Wan 2.2: the low-noise expert (transformer_2.blocks"
        in parse_lora(tensors, "x").notes[0]
    )
    assert len(parse_lora(tensors, "x", expert="low").lora) == 20
    with pytest.raises(
        ValueError, match="the low-noise expert .* alone; one of the high-noise expert is asked"
    ):
        parse_lora(tensors, "x", expert="high")
    unnamed = make_pairs(lambda name: f"diffusion_model.{name}")
    assert parse_lora(unnamed, "x", expert="low").lora.keys() == parse_lora(unnamed, "x").lora.keys()
    with pytest.raises(ValueError, match="Expert 'middle' is not known"):
        parse_lora(unnamed, "x", expert="middle")


def test_both_adapters_of_the_release_in_one_file_are_asked_about(tmp_path):
    tensors = {}
    for adapter, value in (("spatial_lora", 2.0), ("temporal_lora", 3.0)):
        endings = f"lora_A.{adapter}.weight", f"lora_B.{adapter}.weight"
        tensors |= make_pairs(lambda name: name, None, *endings, value)
    save_file(tensors, tmp_path / "both.safetensors")
    with pytest.raises(
        ValueError, match="holds 2 adapters: spatial_lora, temporal_lora. .* --adapter spatial_lora"
    ):
        load_lora(tmp_path / "both.safetensors")
    for adapter, value in (("spatial_lora", 2.0), ("temporal_lora", 3.0)):
        loaded = load_lora(tmp_path / "both.safetensors", SPEC, adapter=adapter)
        assert loaded.lora[QUERY].b.unique() == value and len(loaded.ignored) == 40
        assert f"used is {adapter}" in loaded.notes[0] and "the adapter" in loaded.account
    one = make_pairs(lambda name: name, None, "lora_A.default.weight", "lora_B.default.weight")
    assert len(parse_lora(one, "x", adapter="spatial_lora").lora) == 20


@pytest.mark.parametrize(
    "key, kind",
    [
        ("diffusion_model.blocks.0.self_attn.q.diff_b", "biases"),
        ("transformer.blocks.0.attn1.to_q.lora_B.bias", "biases"),
        ("transformer.blocks.0.attn1.to_q.lora_B.default.bias", "biases"),
        ("diffusion_model.blocks.0.norm3.diff", "norms"),
        ("diffusion_model.blocks.0.norm3.diff_b", "norms"),
        ("diffusion_model.blocks.0.self_attn.norm_q.lora_A.weight", "norms"),
        ("diffusion_model.blocks.0.diff_m", "modulations"),
        ("transformer.scale_shift_table", "modulations"),
        ("diffusion_model.head.head.lora_A.weight", "the head and the embeddings"),
        ("transformer.proj_out.lora_B.weight", "the head and the embeddings"),
        ("lora_unet_text_embedding_0.lora_down.weight", "the head and the embeddings"),
        ("diffusion_model.patch_embedding.diff", "the head and the embeddings"),
        ("transformer.condition_embedder.time_proj.alpha", "the head and the embeddings"),
        ("diffusion_model.blocks.0.cross_attn.k_img.lora_A", "the image inputs of image-to-video"),
        ("transformer.blocks.0.attn2.add_v_proj.lora_A.weight", "the image inputs of image-to-video models"),
        ("diffusion_model.spam.diff", "whole weight changes (.diff)"),
        ("diffusion_model.blocks.0.ffn.0.weight", "whole weights, which are no LoRA"),
        ("pipe.projectors.0.weight", "projectors of the training"),
        ("text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight", "a text encoder"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "a text encoder"),
        ("diffusion_model.vace_blocks.3.ffn.0.lora_A.weight", "other blocks than WAN's own (vace_blocks)"),
        ("diffusion_model.fuser_blocks.0.linear1.lora_A.weight", "other blocks than WAN's own (fuser"),
        ("diffusion_model.spam.blocks.0.ffn.0.lora_A.weight", "WAN blocks under the unknown prefix"),
        ("diffusion_model.blocks.0.spam.lora_A.weight", "unknown names"),
        ("vace_" * 10_000, "unknown names"),
    ],
)  # fmt: skip
def test_what_is_not_used_is_named_by_kind(key, kind):
    assert name_unused_kind(key).startswith(kind)
    loaded = parse_lora(make_pairs(lambda name: name, [QUERY]) | {key: torch.ones(2, 2)}, "dog")
    assert loaded.ignored == [key]
    assert loaded.account.startswith(
        f"2 of 3 tensors are used, for 1 linear of WAN's blocks. Not used: {kind}"
    )


def test_every_kind_has_its_count_and_an_example_and_is_logged_once(caplog):
    others = {f"diffusion_model.vace_blocks.{n}.ffn.0.lora_A.weight": torch.ones(1) for n in range(3)}
    others["diffusion_model.blocks.0.ffn.0.diff_b"] = torch.ones(10)
    loaded = parse_lora(make_pairs(lambda name: name, [QUERY]) | others, "dog.safetensors")
    assert loaded.account == (
        "2 of 6 tensors are used, for 1 linear of WAN's blocks. Not used: other blocks than WAN's own "
        "(vace_blocks): 3, such as diffusion_model.vace_blocks.0.ffn.0.lora_A.weight; biases: 1, such as "
        "diffusion_model.blocks.0.ffn.0.diff_b. With all layers chosen, the Sparse LoRA Loader uses what of "
        "them the model has layers for."
    )
    assert caplog.text.count(f"dog.safetensors: {loaded.account}") == 1
    assert loaded.account in render_report(describe_lora(loaded))


@pytest.mark.parametrize("name", ["blocks.0.ffn.0", "blocks.1.ffn.2", QUERY])
def test_a_change_of_a_whole_weight_is_used_exactly(name, tmp_path):
    torch.manual_seed(0)
    diff = torch.randn(SPEC.linear_shape(name))
    other = make_pairs(lambda name: name, ["blocks.1.self_attn.v"])
    for key in (f"diffusion_model.{name}.diff", f"lora_unet_{flatten(name)}.diff"):
        loaded = parse_lora(other | {key: diff}, "dog")
        assert loaded.ignored == [] and loaded.lora.keys() == {name, "blocks.1.self_attn.v"}
        assert torch.equal(loaded.lora[name].delta(), diff)
        assert loaded.lora[name].rank == min(diff.shape)
        assert f"such as that of {name}, are used as they are" in loaded.notes[0]
    save_lora(tmp_path / "own.safetensors", loaded.lora, LoraMetadata())
    assert torch.equal(load_lora(tmp_path / "own.safetensors", SPEC).lora[name].delta(), diff)


@pytest.mark.parametrize(
    "change, message",
    [
        (make_pairs(lambda name: name, [QUERY]), "both a change of the whole weight .* and a low-rank one"),
        ({f"{QUERY}.alpha": torch.ones(())}, "both a change of the whole weight"),
        ({f"{QUERY}.diff": torch.ones(6)}, r"the .diff of blocks.0.self_attn.q is .* of shape \(6,\)"),
        ({f"{QUERY}.diff": torch.ones(6, 6).int()}, "the .diff of blocks.0.self_attn.q is torch.int32"),
        ({f"{QUERY}.diff": torch.full((6, 6), float("nan"))}, "holds NaN or infinite values"),
    ],
)  # fmt: skip
def test_a_change_of_a_whole_weight_that_is_not_clear_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        parse_lora({f"{QUERY}.diff": torch.ones(6, 6)} | change, "dog")


def test_the_bias_of_a_factor_is_no_second_factor():
    tensors = make_pairs(to_diffusers_linear)
    tensors |= {f"{to_diffusers_linear(QUERY)}.lora_B.bias": torch.ones(6)}
    loaded = parse_lora(tensors, "dog")
    assert len(loaded.lora) == 20 and "biases: 1, such as" in loaded.account


def test_a_pair_of_full_rank_adds_what_the_whole_weight_would():
    pair = parse_lora({f"{QUERY}.diff": torch.arange(36.0).reshape(6, 6)}, "dog").lora[QUERY]
    assert isinstance(pair, LoraPair)
    x = torch.randn(4, 6)
    changed = pair.add_to(torch.zeros(4, 6), x, strength=1.0)
    torch.testing.assert_close(changed, x @ torch.arange(36.0).reshape(6, 6).T)
