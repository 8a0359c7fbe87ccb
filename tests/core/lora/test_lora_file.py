import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from toy_models import random_lora

from smra_core.lora.adapter import LoraPair
from smra_core.lora.dialects import parse_key
from smra_core.lora.metadata import LoraMetadata, name_unknown_caption
from smra_core.lora.plan import MOTION, SUBJECT
from smra_core.lora.reader import load_lora
from smra_core.lora.report import compute_delta_norm, describe_lora, render_report
from smra_core.lora.writer import DIALECTS_OUT, convert_lora, save_lora
from smra_core.wan.module_names import to_diffusers_linear
from smra_core.wan.spec import WAN_1_3B, WAN_14B, WanSpec

SPEC = WanSpec("tiny", blocks=2, dim=6, ffn=10, heads=1)
RANK = 3
"""The rank of `random_lora`."""


def flat(name):
    return name.replace(".", "_")


# name of a module and of its factors in each dialect
FOREIGN = {
    "comfyui": (lambda n: f"diffusion_model.{n}", "lora_A.weight", "lora_B.weight"),
    "diffsynth": (lambda n: n, "lora_A.default.weight", "lora_B.default.weight"),
    "diffsynth with pipe": (lambda n: f"pipe.dit.{n}", "lora_A.default.weight", "lora_B.default.weight"),
    "release, subject": (lambda n: n, "lora_A.spatial_lora.weight", "lora_B.spatial_lora.weight"),
    "release, motion": (lambda n: n, "lora_A.temporal_lora.weight", "lora_B.temporal_lora.weight"),
    "peft": (lambda n: f"base_model.model.{n}", "lora_A.weight", "lora_B.weight"),
    "diffusers": (lambda n: f"transformer.{to_diffusers_linear(n)}", "lora_A.weight", "lora_B.weight"),
    "diffusers, bare": (to_diffusers_linear, "lora_A.weight", "lora_B.weight"),
    "kohya": (lambda n: f"lora_unet_{flat(n)}", "lora_down.weight", "lora_up.weight"),
    "kohya, wan-fun": (lambda n: f"lora_unet__{flat(n)}", "lora_down.weight", "lora_up.weight"),
    "kohya of diffusers": (
        lambda n: f"lora_unet_{flat(to_diffusers_linear(n))}",
        "lora_down.weight",
        "lora_up.weight",
    ),
    "host, dotted": (lambda n: f"diffusion_model.{n}", "lora.down.weight", "lora.up.weight"),
    "host, underscored": (lambda n: f"diffusion_model.{n}_lora", "down.weight", "up.weight"),
    "host, linear layer": (
        lambda n: f"diffusion_model.{n}.lora_linear_layer",
        "down.weight",
        "up.weight",
    ),
    "host, bare": (lambda n: f"diffusion_model.{n}", "lora_A", "lora_B"),
    "lycoris": (lambda n: f"lycoris_{flat(n)}", "lora_down.weight", "lora_up.weight"),
}


def same(loaded, lora):
    assert loaded.keys() == lora.keys()
    for name, pair in lora.items():
        torch.testing.assert_close(loaded[name].delta(), pair.delta())


@pytest.mark.parametrize("dialect", FOREIGN)
def test_every_dialect_is_read_whole(dialect, tmp_path):
    lora, (module, first, second) = random_lora(SPEC), FOREIGN[dialect]
    tensors = {}
    for name, pair in lora.items():
        tensors[f"{module(name)}.{first}"] = pair.a.detach().clone()
        tensors[f"{module(name)}.{second}"] = pair.b.detach().clone()
    save_file(tensors, tmp_path / "lora.safetensors")
    loaded = load_lora(tmp_path / "lora.safetensors", SPEC)
    same(loaded.lora, lora)
    assert loaded.ignored == []
    assert list(loaded.lora) == SPEC.linear_names()


@pytest.mark.parametrize("dialect", DIALECTS_OUT)
def test_converting_there_and_back_keeps_every_change(dialect, tmp_path):
    lora = random_lora(SPEC, MOTION)
    there = tmp_path / ("there" if dialect == "peft" else "there.safetensors")
    save_lora(tmp_path / "own.safetensors", lora, LoraMetadata("motion", "v,o", RANK, captions=("a", "b")))
    convert_lora(tmp_path / "own.safetensors", there, dialect)
    loaded = load_lora(there)
    same(loaded.lora, lora)
    assert loaded.dialect == dialect
    assert loaded.metadata == LoraMetadata("motion", "v,o", RANK, captions=("a", "b"))


@pytest.mark.parametrize("first", DIALECTS_OUT)
@pytest.mark.parametrize("second", DIALECTS_OUT)
def test_any_dialect_converts_into_any_other(first, second, tmp_path):
    lora = random_lora(SPEC, SUBJECT)
    save_lora(tmp_path / "own.safetensors", lora, LoraMetadata("subject", "q,k", RANK))
    places = [
        tmp_path / (f"{number}" if dialect == "peft" else f"{number}.safetensors")
        for number, dialect in enumerate((first, second))
    ]
    convert_lora(tmp_path / "own.safetensors", places[0], first)
    convert_lora(places[0], places[1], second)
    loaded = load_lora(places[1], SPEC)
    same(loaded.lora, lora)
    assert loaded.dialect == second and loaded.ignored == []
    assert loaded.metadata == LoraMetadata("subject", "q,k", RANK)


def test_our_own_scale_is_baked_in_and_no_alpha_is_written(tmp_path):
    pair = LoraPair(torch.ones(RANK, 6), torch.ones(6, RANK), scale=0.5)
    save_lora(tmp_path / "lora.safetensors", {"blocks.0.self_attn.q": pair}, LoraMetadata())
    with safe_open(tmp_path / "lora.safetensors", framework="pt") as file:
        assert set(file.keys()) == {
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
            "diffusion_model.blocks.0.self_attn.q.lora_B.weight",
        }
        assert file.metadata()["modelspec.architecture"] == "wan2.1/lora"
    same(load_lora(tmp_path / "lora.safetensors").lora, {"blocks.0.self_attn.q": pair})


@pytest.mark.parametrize("plan, modules", [(SUBJECT, 150), (MOTION, 180)])
def test_the_papers_plans_fill_a_file_of_the_real_model(plan, modules, tmp_path):
    save_lora(tmp_path / "lora.safetensors", random_lora(WAN_1_3B, plan, rank=1), LoraMetadata())
    report = describe_lora(load_lora(tmp_path / "lora.safetensors", WAN_1_3B))
    assert sum(report.modules.values()) == modules


def test_what_is_no_linear_of_a_block_is_listed(tmp_path):
    tensors = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(RANK, 6),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(6, RANK),
        "pipe.projectors.0.weight": torch.ones(2, 2),
        "diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight": torch.ones(RANK, 6),
        "diffusion_model.head.head.lora_A.weight": torch.ones(RANK, 6),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    loaded = load_lora(tmp_path / "lora.safetensors")
    assert list(loaded.lora) == ["blocks.0.self_attn.q"] and len(loaded.ignored) == 3


@pytest.mark.parametrize(
    "tensors, message",
    [
        (
            {"some.weight": torch.ones(1)},
            r"no LoRA of a WAN block. Its 1 tensors look like: some.weight;",
        ),
        ({"blocks.0.ffn.0.lora_A.weight": torch.ones(RANK, 6)}, "blocks.0.ffn.0 without its factor B"),
        (
            {
                "blocks.0.ffn.0.lora_A.weight": torch.ones(RANK, 6),
                "blocks.0.ffn.0.lora_B.weight": torch.ones(10, RANK + 1),
            },
            r"factors of blocks.0.ffn.0 are \(3, 6\) and \(10, 4\)",
        ),
        (
            {
                "blocks.0.ffn.0.lora_A.weight": torch.full((RANK, 6), float("nan")),
                "blocks.0.ffn.0.lora_B.weight": torch.ones(10, RANK),
            },
            "blocks.0.ffn.0 holds NaN",
        ),
        (
            {
                "blocks.0.ffn.0.lora_A.weight": torch.ones(RANK, 6),
                "diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.ones(RANK, 6),
            },
            "has a of blocks.0.ffn.0 twice",
        ),
    ],
)
def test_files_that_are_not_whole_are_refused(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=message):
        load_lora(tmp_path / "lora.safetensors")


def test_a_lora_of_another_model_is_refused(tmp_path):
    save_lora(tmp_path / "lora.safetensors", random_lora(SPEC), LoraMetadata())
    with pytest.raises(ValueError, match="does not fit Wan2.1-T2V-1.3B: blocks.0.self_attn.q"):
        load_lora(tmp_path / "lora.safetensors", WAN_1_3B)


def test_a_lora_of_14b_on_1_3b_is_refused_with_both_sides_and_its_own_model(tmp_path):
    save_lora(tmp_path / "lora.safetensors", random_lora(WAN_14B, SUBJECT, rank=1), LoraMetadata())
    message = (
        r"does not fit Wan2.1-T2V-1.3B: blocks.0.self_attn.q is for a linear of \(5120, 5120\) \(out, in\), "
        r"the model's is \(1536, 1536\); the LoRA reaches over 40 blocks, the model has 30; 200 of 200 .*"
        "trained on Wan2.1-T2V-14B: load that model"
    )
    with pytest.raises(ValueError, match=message):
        load_lora(tmp_path / "lora.safetensors", WAN_1_3B)


def test_a_block_too_many_is_refused(tmp_path):
    save_lora(tmp_path / "lora.safetensors", random_lora(SPEC), LoraMetadata())
    with pytest.raises(ValueError, match="reaches over 2 blocks, the model has 1; 10 of 20 modules"):
        load_lora(tmp_path / "lora.safetensors", dataclasses.replace(SPEC, blocks=1))


def pair_tensors(name="blocks.0.ffn.0", rank=RANK, first="lora_A.weight", second="lora_B.weight"):
    return {f"{name}.{first}": torch.ones(rank, 6), f"{name}.{second}": torch.ones(10, rank)}


@pytest.mark.parametrize(
    "ending, kind",
    [
        ("lokr_w1", "LoKr"),
        ("lokr_w2_a", "LoKr"),
        ("hada_w1_a", "LoHa"),
        ("oft_blocks", "OFT or BOFT"),
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector.weight", "DoRA"),
        ("lora_mid.weight", "LoCon with a middle factor"),
        ("a1.weight", "GLoRA"),
        ("on_input", "IA3"),
    ],
)
def test_other_algorithms_are_refused_by_name(ending, kind, tmp_path):
    # Beside a good pair: what else changes the same linear must not be dropped in silence.
    for module in ("lycoris_blocks_0_ffn_0", "diffusion_model.blocks.1.ffn.0", "some.other.module"):
        tensors = {f"{module}.{ending}": torch.ones(2, 2)}
        if "blocks" in module:
            tensors |= pair_tensors()
        save_file(tensors, tmp_path / "lora.safetensors")
        with pytest.raises(ValueError, match=f"lora.safetensors is {kind}, not a plain LoRA"):
            load_lora(tmp_path / "lora.safetensors")


def test_changes_of_norms_and_biases_are_left_out_aloud(tmp_path, caplog):
    tensors = pair_tensors() | {"diffusion_model.blocks.0.norm3.diff_b": torch.ones(6)}
    save_file(tensors, tmp_path / "lora.safetensors")
    assert load_lora(tmp_path / "lora.safetensors").ignored == ["diffusion_model.blocks.0.norm3.diff_b"]
    assert "norms: 1, such as diffusion_model.blocks.0.norm3.diff_b. With all layers chosen" in caplog.text


def test_a_file_of_another_rank_than_it_says_is_refused(tmp_path):
    metadata = LoraMetadata("subject", "q,k", rank=32)
    save_lora(tmp_path / "lora.safetensors", random_lora(SPEC), metadata)
    with pytest.raises(ValueError, match=r"says rank 32, its factors have \[3\]"):
        load_lora(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"blocks.0.ffn.0.lora_A.weight": torch.ones(RANK, 0)}, r"are \(3, 0\) and \(10, 3\)"),
        ({"blocks.0.ffn.0.lora_A.weight": torch.ones(RANK, 6).int()}, "torch.int32 and torch.float32"),
        (pair_tensors(rank=4097), "has rank 4097; 4096 is the most"),
    ],
)
def test_absurd_factors_are_refused(change, message, tmp_path):
    save_file(pair_tensors() | change, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=message):
        load_lora(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("number", ["9" * 5000, "1000", "007", "\u0663", "-1"])
def test_absurd_block_numbers_are_no_blocks(number, tmp_path):
    odd = pair_tensors(f"blocks.{number}.ffn.0")
    assert parse_key(next(iter(odd))) is None
    assert parse_key(f"lora_unet_blocks_{number}_ffn_0.alpha") is None or number == "007"


@pytest.mark.parametrize("name", ["out", "out.pt"])
@pytest.mark.parametrize("dialect", ["comfyui", "kohya", "diffusers"])
def test_a_target_that_no_loader_would_find_is_refused(tmp_path, name, dialect):
    save_lora(tmp_path / "own.safetensors", random_lora(SPEC), LoraMetadata())
    with pytest.raises(ValueError, match=rf"{name} is no name of a safetensors file.* Give .*{name}.safet"):
        convert_lora(tmp_path / "own.safetensors", tmp_path / name, dialect)


def test_a_target_that_is_a_folder_is_refused(tmp_path):
    save_lora(tmp_path / "own.safetensors", random_lora(SPEC), LoraMetadata())
    with pytest.raises(ValueError, match=r"is a folder; give a file, such as .*lora.safetensors"):
        convert_lora(tmp_path / "own.safetensors", tmp_path)


def test_equal_loras_have_equal_bytes(tmp_path):
    metadata = LoraMetadata("motion", "v,o", RANK, captions=("a", "b"))
    for name in ("first.safetensors", "second.safetensors"):
        save_lora(tmp_path / name, random_lora(SPEC, MOTION), metadata)
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()


def test_a_lora_of_the_5b_model_is_named(tmp_path):
    model = WanSpec("5B", blocks=30, dim=3072, ffn=14336, heads=24)
    save_lora(tmp_path / "lora.safetensors", random_lora(model, SUBJECT, rank=1), LoraMetadata())
    with pytest.raises(ValueError, match="It was trained on Wan2.2-TI2V-5B: load that model"):
        load_lora(tmp_path / "lora.safetensors", WAN_1_3B)


def test_a_peft_adapter_is_a_folder(tmp_path):
    save_lora(tmp_path / "own.safetensors", random_lora(SPEC), LoraMetadata())
    with pytest.raises(ValueError, match="PEFT keeps an adapter in a folder; give .*there instead of"):
        convert_lora(tmp_path / "own.safetensors", tmp_path / "there.safetensors", "peft")


def test_metadata_of_strangers_is_not_trusted():
    odd = {
        "smrabooth.role": "[1]",
        "smrabooth.rank": '"x"',
        "smrabooth.plan": "{",
        "smrabooth.captions": '["a"]',
    }
    assert LoraMetadata.from_file(odd) == LoraMetadata(captions=("a",))


def test_a_caption_that_is_not_known_is_no_trigger_phrase(tmp_path):
    for captions, phrase in (
        ((name_unknown_caption(0),), ""),
        ((name_unknown_caption(0), name_unknown_caption(11), "prompt 1 (2)"), ""),
        (("a sks dog", name_unknown_caption(1)), "a sks dog"),
        (("a sks dog", "a prompt 1"), "a sks dog | a prompt 1"),
        (("a sks dog", "a sks dog (2)", "a cat (2)"), "a sks dog | a cat (2)"),
    ):
        metadata = LoraMetadata("subject", captions=captions).to_file()
        assert metadata["modelspec.trigger_phrase"] == phrase
        assert LoraMetadata.from_file(metadata).captions == tuple(filter(None, phrase.split(" | ")))


def test_norms_equal_those_of_the_dense_changes(tmp_path):
    lora = random_lora(SPEC)
    save_lora(tmp_path / "lora.safetensors", lora, LoraMetadata("subject", "q,k", RANK, name="dog"))
    report = describe_lora(load_lora(tmp_path / "lora.safetensors"))
    for pair in lora.values():
        assert compute_delta_norm(pair) == pytest.approx(pair.delta().norm().item(), rel=1e-5)
    dense = torch.cat([pair.delta().flatten() for name, pair in lora.items() if name.endswith(".q")])
    assert report.role_norms["q"] == pytest.approx(dense.norm().item(), rel=1e-5)
    first = torch.cat([pair.delta().flatten() for name, pair in lora.items() if "blocks.0." in name])
    assert report.block_norms[0] == pytest.approx(first.norm().item(), rel=1e-5)
    assert report.plan == "q,k,v,o,ffn.0,ffn.2 (all-layers)"
    text = render_report(report)
    assert "comfyui" in text and "dog" in text and f"{len(lora)}" in text
