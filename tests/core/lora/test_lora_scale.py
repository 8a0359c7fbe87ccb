"""The scale of a LoRA: from alphas in the file, or from a PEFT configuration."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from smra_core.lora.adapter import LoraPair
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.reader import load_lora
from smra_core.lora.scale import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from smra_core.lora.writer import save_lora

RANK = 3


def pair_tensors(name="blocks.0.ffn.0"):
    return {f"{name}.lora_A.weight": torch.ones(RANK, 6), f"{name}.lora_B.weight": torch.ones(10, RANK)}


def test_alpha_over_rank_is_the_scale(tmp_path):
    tensors = {
        "lora_unet_blocks_0_ffn_0.lora_down.weight": torch.ones(RANK, 6),
        "lora_unet_blocks_0_ffn_0.lora_up.weight": torch.ones(10, RANK),
        "lora_unet_blocks_0_ffn_0.alpha": torch.tensor(1.5),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    delta = load_lora(tmp_path / "lora.safetensors").lora["blocks.0.ffn.0"].delta()
    torch.testing.assert_close(delta, torch.full((10, 6), RANK * 1.5 / RANK))


def config(**changes):
    return {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK} | changes


def save_peft(folder, values, tensors=None):
    prefixed = {f"base_model.model.{name}": value for name, value in (tensors or pair_tensors()).items()}
    save_file(prefixed, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "values, scale",
    [
        (config(), 2),
        (config(alpha_pattern={"ffn.0": 6 * RANK}), 6),
        (config(alpha_pattern={"0.ffn.2": 6 * RANK}), 2),
        (config(r=5, rank_pattern={"blocks.0.ffn.0": RANK}, lora_alpha=RANK), 1),
        (config(use_rslora=True), 2 * RANK**0.5),
        (config(alpha_pattern={r"blocks\.(0|7)\.ffn\.\d": 6 * RANK}), 6),
        (config(alpha_pattern={"^ffn.0": 6 * RANK}), 2),
        (config(alpha_pattern={"ffn.0": 6 * RANK, "blocks.0.ffn.0": 9 * RANK}), 6),  # the first that matches
    ],
)
def test_pefts_configuration_sets_the_scale(values, scale, tmp_path):
    delta = load_lora(save_peft(tmp_path, values)).lora["blocks.0.ffn.0"].delta()
    torch.testing.assert_close(delta, torch.full((10, 6), float(scale * RANK)))


def test_the_metadata_of_diffusers_sets_the_scale(tmp_path):
    tensors = {f"transformer.blocks.0.ffn.net.0.proj.{n[15:]}": v for n, v in pair_tensors().items()}
    values = {f"transformer.{name}": value for name, value in config().items()}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(values)})
    delta = load_lora(path).lora["blocks.0.ffn.0"].delta()
    torch.testing.assert_close(delta, torch.full((10, 6), 2.0 * RANK))


@pytest.mark.parametrize(
    "values, message",
    [
        (config(r=8), "have rank 3, adapter_config.json says 8"),
        (config(peft_type="LOHA"), "an adapter of kind LOHA"),
        (config(use_dora=True), "an adapter of kind DoRA"),
        ({"peft_type": "LORA", "lora_alpha": 16}, "adapter_config.json has no r, the rank of the LoRA"),
        ({}, "adapter_config.json has no r"),
        ([1], "not a JSON object"),
        (config(r="many"), "has no usable r and lora_alpha"),
        (config(lora_alpha=float("nan")), "an alpha that is no number"),
        (config(rank_pattern=["blocks"]), "has no usable r and lora_alpha"),
        (config(target_modules="q", layers_pattern="blocks"), "has no usable r and lora_alpha"),
        (config(alpha_pattern={"(": 1}), r"has 1 patterns for modules, such as '\('"),
        (config(alpha_pattern={r"(\w+)+!": 1}), "each with at most 4 repetitions and none of a group"),
        (config(alpha_pattern={".*" * 9: 1}), "each with at most 4 repetitions and none of a group"),
        (config(rank_pattern={f"x{i}": 1 for i in range(1001)}), "has 1001 patterns for modules"),
    ],
)
def test_a_configuration_that_does_not_belong_is_refused(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_lora(save_peft(tmp_path, values))


@pytest.mark.parametrize(
    "alpha, message",
    [
        (torch.ones(2), r"alpha of blocks.0.ffn.0 is of shape \(2,\); one number"),
        (torch.tensor(float("nan")), "alpha of blocks.0.ffn.0 is nan"),
        (torch.tensor(3.0), "has alpha 3 at rank 3, scale 1; the adapter's configuration says scale 2"),
    ],
)
def test_alphas_that_disagree_are_refused_with_both_sides(alpha, message, tmp_path):
    tensors = pair_tensors() | {"blocks.0.ffn.0.alpha": alpha}
    with pytest.raises(ValueError, match=message):
        load_lora(save_peft(tmp_path, config(), tensors))


PEFT_NAMES = {f"base_model.model.{name}": value for name, value in pair_tensors().items()}


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_model.bin", "my_dog.sft", "my_dog.pt"]
)
@pytest.mark.parametrize("given", ["file", "folder"])
def test_the_configuration_beside_any_file_of_pefts_names_is_read(tmp_path, name, given):
    save = save_file if name.endswith(("safetensors", "sft")) else torch.save
    save(PEFT_NAMES, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config()))
    loaded = load_lora(tmp_path if given == "folder" else tmp_path / name)
    torch.testing.assert_close(loaded.lora["blocks.0.ffn.0"].delta(), torch.full((10, 6), 2.0 * RANK))
    assert loaded.notes == ("The scale is that of adapter_config.json.",)


def test_the_configuration_beside_a_file_of_other_names_is_of_another_lora(tmp_path):
    save_file(pair_tensors(), tmp_path / "dog.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config(r=5)))
    assert load_lora(tmp_path / "dog.safetensors").lora["blocks.0.ffn.0"].delta()[0, 0] == RANK


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "dog.safetensors"])
def test_a_folder_with_one_lora_is_read(tmp_path, name):
    save_file(pair_tensors(), tmp_path / name)
    (tmp_path / "README.md").write_text("a dog")
    assert load_lora(tmp_path).lora.keys() == {"blocks.0.ffn.0"}


@pytest.mark.parametrize("names", [(), ("a.safetensors", "b.sft")])
def test_a_folder_without_one_lora_says_what_it_holds(tmp_path, names):
    for name in names:
        save_file(pair_tensors(), tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"holds {len(names)} LoRAs to choose from \({', '.join(names) or 'none'}\)"
    ):
        load_lora(tmp_path)


def test_the_only_subfolder_of_an_adapter_is_read(tmp_path):
    for name in ("spatial_lora", "temporal_lora"):
        (tmp_path / name).mkdir()
        save_peft(tmp_path / name, config())
        if name == "spatial_lora":
            delta = load_lora(tmp_path).lora["blocks.0.ffn.0"].delta()
            torch.testing.assert_close(delta, torch.full((10, 6), 2.0 * RANK))
    with pytest.raises(ValueError, match=r"2 LoRAs to choose from \(spatial_lora, temporal_lora\)"):
        load_lora(tmp_path)


def test_an_alpha_that_peft_would_take_from_its_default_is_told(tmp_path):
    loaded = load_lora(save_peft(tmp_path, {"peft_type": "LORA", "r": RANK}))
    torch.testing.assert_close(loaded.lora["blocks.0.ffn.0"].delta(), torch.full((10, 6), 8.0))
    (note,) = loaded.notes
    assert "it has no lora_alpha, so PEFT's 8 is assumed" in note


@pytest.mark.parametrize(
    "prefix, metadata, told",
    [
        ("", {}, "scale 1 is assumed."),
        ("base_model.model.", {}, "put that file beside this one"),
        (
            "",
            {"ss_network_alpha": "16", "ss_network_dim": "3"},
            "ss_network_alpha 16 at rank 3 is not applied",
        ),
        ("", {"ss_network_alpha": "3", "ss_network_dim": "3"}, "scale 1 is assumed."),
    ],
)
def test_a_scale_that_is_written_nowhere_is_told(tmp_path, prefix, metadata, told, caplog):
    caplog.set_level("INFO", "smrabooth")
    tensors = {f"{prefix}{name}": value for name, value in pair_tensors().items()}
    save_file(tensors, tmp_path / "dog.safetensors", metadata)
    (note,) = load_lora(tmp_path / "dog.safetensors").notes
    assert "No alpha and no PEFT configuration gives the scale" in note and told in note
    assert f"dog.safetensors: {note}" in caplog.text


def test_an_alpha_that_some_linears_lack_is_told(tmp_path):
    tensors = pair_tensors() | pair_tensors("blocks.1.ffn.0") | {"blocks.0.ffn.0.alpha": torch.tensor(1.5)}
    save_file(tensors, tmp_path / "dog.safetensors")
    (note,) = load_lora(tmp_path / "dog.safetensors").notes
    assert note.startswith("1 of 2 linears have no alpha, such as blocks.1.ffn.0; scale 1 is assumed")


def test_a_file_of_our_own_has_its_scale_baked_in(tmp_path):
    metadata = LoraMetadata("subject", "ffn.0", RANK)
    save_lora(
        tmp_path / "own.safetensors",
        {"blocks.0.ffn.0": LoraPair(torch.ones(3, 6), torch.ones(10, 3))},
        metadata,
    )
    assert load_lora(tmp_path / "own.safetensors").notes == ()


def test_the_configuration_of_the_other_expert_is_read_under_its_prefix(tmp_path):
    tensors = {f"transformer_2.blocks.0.ffn.net.0.proj.{n[15:]}": v for n, v in pair_tensors().items()}
    values = {f"transformer_2.{name}": value for name, value in config().items()}
    other = {f"transformer.{name}": value for name, value in config(r=7).items()}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(values | other)})
    delta = load_lora(tmp_path / "x.safetensors").lora["blocks.0.ffn.0"].delta()
    torch.testing.assert_close(delta, torch.full((10, 6), 2.0 * RANK))


def test_a_missing_peft_is_named_with_the_way_out(tmp_path, monkeypatch):
    save_peft(tmp_path, config())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="needs the library peft, .* pip install peft"):
        load_lora(tmp_path)


def test_a_file_without_a_configuration_needs_no_peft(tmp_path, monkeypatch):
    save_file(pair_tensors(), tmp_path / "lora.safetensors")
    monkeypatch.setitem(sys.modules, "peft", None)
    assert load_lora(tmp_path / "lora.safetensors").lora.keys() == {"blocks.0.ffn.0"}


def test_the_two_files_are_called_as_peft_calls_them():
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

    assert (ADAPTER_CONFIG, ADAPTER_WEIGHTS) == (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)
