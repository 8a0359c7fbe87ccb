"""SEA-RAFT files: every way they are published in is read, everything else is refused."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from make_sea_raft_golden import seeded_weights
from safetensors.torch import save_file

from smra_core.encoders.sea_raft import SeaRaft, load_sea_raft, save_sea_raft
from smra_core.encoders.sea_raft_config import SEA_RAFT_M, SEA_RAFT_MINIATURE, SEA_RAFT_S
from smra_core.encoders.sea_raft_files import CONFIG_KEY

NAMES_IN_PTH = {"s": 276, "m": 472}
NAMES_IN_SAFETENSORS = {"s": 256, "m": 452}
CONFIGS = {"s": SEA_RAFT_S, "m": SEA_RAFT_M}


def published_weights(config):
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in SeaRaft(config).state_dict().items()}
    return seeded_weights(shapes)


@pytest.fixture(scope="module")
def weights_s():
    return published_weights(SEA_RAFT_S)


def hub_names(weights):
    return {name: value for name, value in weights.items() if ".downsample.1." not in name}


def assert_holds(net, weights):
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name]), name


def writers(weights):
    return {
        "raw.pth": lambda path: torch.save(weights, path),
        "hub.safetensors": lambda path: save_file(hub_names(weights), path),
        "lightning.ckpt": lambda path: torch.save({"state_dict": weights, "epoch": 3, "loops": {}}, path),
        "parallel.pth": lambda path: torch.save({f"module.{k}": v for k, v in weights.items()}, path),
        "parallel.safetensors": lambda path: save_file(
            {f"module.{k}": v for k, v in hub_names(weights).items()}, path
        ),
    }


@pytest.mark.parametrize(
    "name", ["raw.pth", "hub.safetensors", "lightning.ckpt", "parallel.pth", "parallel.safetensors"]
)
def test_every_published_kind_of_file_gives_the_same_net(tmp_path, weights_s, name):
    writers(weights_s)[name](tmp_path / name)
    net = load_sea_raft(tmp_path / name)
    assert net.config == SEA_RAFT_S
    assert_holds(net, weights_s)
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_m_is_told_from_s(tmp_path):
    weights = published_weights(SEA_RAFT_M)
    save_file(hub_names(weights), tmp_path / "m.safetensors")
    net = load_sea_raft(tmp_path / "m.safetensors", iterations=12, scale=0)
    assert (net.config.name, net.config.iterations, net.config.scale) == ("SEA-RAFT M", 12, 0)
    assert_holds(net, weights)


@pytest.mark.parametrize("size", CONFIGS)
def test_names_number_those_of_the_published_files(size):
    with torch.device("meta"):
        names = SeaRaft(CONFIGS[size]).state_dict()
    assert len(names) == NAMES_IN_PTH[size]
    assert len(hub_names(names)) == NAMES_IN_SAFETENSORS[size]


def test_miniature_is_saved_with_its_sizes_and_loaded_from_them(tmp_path):
    net = SeaRaft(SEA_RAFT_MINIATURE)
    save_sea_raft(net, tmp_path / "mini.safetensors", torch.float32)
    loaded = load_sea_raft(tmp_path / "mini.safetensors")
    assert loaded.config == SEA_RAFT_MINIATURE
    assert_holds(loaded, net.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["mini.safetensors"]


def test_half_precision_file_is_half_as_large_and_comes_back_as_float32(tmp_path):
    net = SeaRaft(SEA_RAFT_MINIATURE)
    for dtype in (torch.float16, torch.float32):
        save_sea_raft(net, tmp_path / f"{dtype}.safetensors", dtype)
    half, full = (tmp_path / f"{d}.safetensors" for d in (torch.float16, torch.float32))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    assert load_sea_raft(half).fnet.conv1.weight.dtype == torch.float32


def test_batch_counters_may_be_missing(tmp_path, weights_s):
    kept = {k: v for k, v in hub_names(weights_s).items() if not k.endswith("num_batches_tracked")}
    save_file(kept, tmp_path / "a.safetensors")
    assert_holds(load_sea_raft(tmp_path / "a.safetensors"), weights_s)


def refused(tmp_path, weights, match, name="bad.safetensors"):
    path = tmp_path / name
    save_file(weights, path) if name.endswith("safetensors") else torch.save(weights, path)
    with pytest.raises(ValueError, match=match):
        load_sea_raft(path)


def test_a_missing_weight_is_named(tmp_path, weights_s):
    left = hub_names(weights_s)
    del left["update_block.refine.1.gamma"]
    refused(tmp_path, left, r"1 weights are missing \(update_block.refine.1.gamma\) and 0 are unknown")


def test_an_unknown_weight_is_named(tmp_path, weights_s):
    refused(
        tmp_path, hub_names(weights_s) | {"extra.weight": torch.ones(2)}, r"1 are unknown \(extra.weight\)"
    )


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path, weights_s):
    narrow = hub_names(weights_s) | {"init_conv.bias": torch.ones(7)}
    refused(tmp_path, narrow, r"init_conv.bias is \(7,\), needed \(256,\)")


def test_weights_that_are_not_finite_are_named(tmp_path, weights_s):
    bad = weights_s["init_conv.bias"].clone()
    bad[3] = float("nan")
    refused(tmp_path, hub_names(weights_s) | {"init_conv.bias": bad}, "NaN or infinite in init_conv.bias")


def test_two_names_of_one_norm_that_differ_are_refused(tmp_path, weights_s):
    name = "fnet.layer2.0.downsample.1.weight"
    refused(tmp_path, weights_s | {name: weights_s[name] + 1}, "one norm", name="bad.pth")


def test_another_model_is_refused_with_what_was_seen(tmp_path):
    refused(tmp_path, {"blocks.0.attn.qkv.weight": torch.ones(2)}, "not SEA-RAFT.*blocks.0.attn.qkv.weight")


def test_many_unknown_names_are_refused_in_few_words(tmp_path, weights_s):
    many = hub_names(weights_s) | {f"x{i}": torch.ones(1) for i in range(3000)}
    save_file(many, tmp_path / "many.safetensors")
    with pytest.raises(ValueError, match="3000 are unknown.*and 2995 more") as caught:
        load_sea_raft(tmp_path / "many.safetensors")
    assert len(str(caught.value)) < 1000


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("bomb_went_off"),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, monkeypatch, weights_s):
    monkeypatch.chdir(tmp_path)
    torch.save({**weights_s, "bomb": Bomb()}, "bomb.pth")
    with pytest.raises(ValueError, match="no code in it was executed"):
        load_sea_raft("bomb.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="older format"):
        load_sea_raft("bare.pth")
    assert not (tmp_path / "bomb_went_off").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_truncated_files_are_refused(tmp_path, weights_s, name):
    writers(weights_s)["hub.safetensors" if name.endswith("safetensors") else "raw.pth"](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 7, 1000, len(whole) // 2, len(whole) - 100):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ValueError, match="safetensors|Download"):
            load_sea_raft(tmp_path / name)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path, weights_s):
    huge = torch.ones(1).expand(1 << 40)
    torch.save(weights_s | {"init_conv.bias": huge}, tmp_path / "huge.pth")
    with pytest.raises(ValueError, match="not plain tensors: init_conv.bias"):
        load_sea_raft(tmp_path / "huge.pth")


def test_a_compressed_archive_is_refused(tmp_path, weights_s):
    torch.save(weights_s, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source:
        with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in source.infolist()[:3]:
                packed.writestr(entry.filename, source.read(entry))
    with pytest.raises(ValueError, match="compressed"):
        load_sea_raft(tmp_path / "b.pth")


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"blocks": [1, 1, 1]}', "[" * 10000])
def test_metadata_that_is_no_config_is_refused(tmp_path, config):
    save_file({"flow_head.0.weight": torch.ones(1)}, tmp_path / "a.safetensors", {CONFIG_KEY: config})
    with pytest.raises(ValueError, match=CONFIG_KEY):
        load_sea_raft(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "change", [{"dim": 10**9}, {"dim": "x"}, {"blocks": [1, 1]}, {"radius": -1}, {"scale": 5}]
)
def test_absurd_sizes_in_metadata_are_refused_before_building(tmp_path, change):
    config = {"name": "x", "blocks": [1, 1, 1]} | {"widths": [8, 8, 8]} | change
    save_file(
        {"flow_head.0.weight": torch.ones(1)}, tmp_path / "a.safetensors", {CONFIG_KEY: json.dumps(config)}
    )
    with pytest.raises(ValueError, match=CONFIG_KEY):
        load_sea_raft(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, {}])
def test_pickles_that_hold_no_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth"):
        load_sea_raft(tmp_path / "a.pth")


def test_a_missing_file_is_an_error_that_says_what_to_choose(tmp_path):
    with pytest.raises(ValueError, match=r"is not a file.*\.safetensors or \.pth"):
        load_sea_raft(tmp_path / "nothing.pth")
