"""DINOv2: one file in three dialects is one net, and its patches are the grid of WAN's tokens."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from random_dinov2 import authors_names, random_weights, transformers_names
from safetensors.torch import save_file

from smra_core.encoders.dinov2 import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DinoV2,
    choose_dtype,
    load_dinov2,
    prepare_pictures,
)
from smra_core.encoders.dinov2_files import DinoV2Config, find_config, list_expected_shapes, with_timm_names
from smra_core.storage.weight_file import WeightFile

WIDTH, DEPTH, HEADS, GRID = 32, 2, 4, 5
PLAIN = DinoV2Config(WIDTH, DEPTH, HEADS, hidden=4 * WIDTH, gated=False, grid=GRID, registers=0)
GATED = dataclasses.replace(PLAIN, hidden=176, gated=True)  # 2 * 88: what DINOv2's rounding gives for 32
REGISTERS = dataclasses.replace(PLAIN, registers=4)
BOTH = dataclasses.replace(GATED, registers=4)
PUBLISHED = {
    # width, blocks, hidden, gated: parameters in millions, as the authors list them (21, 86, 300, 1100)
    "S": ((384, 12, 6, 1536, False), 22),
    "B": ((768, 12, 12, 3072, False), 87),
    "L": ((1024, 24, 16, 4096, False), 304),
    "g": ((1536, 40, 24, 8192, True), 1136),
}
METADATA = {"heads": str(HEADS)}
ROWS, COLUMNS = 3, 4


def random_pictures(batch=2):
    return torch.rand(batch, 3, 16 * ROWS, 16 * COLUMNS, generator=torch.Generator().manual_seed(1))


def load(tmp_path, tensors, metadata=METADATA):
    path = tmp_path / "dino.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return load_dinov2(path)


@pytest.mark.parametrize(
    "config", [PLAIN, GATED, REGISTERS, BOTH], ids=["mlp", "swiglu", "registers", "swiglu with registers"]
)
def test_three_dialects_give_bit_equal_features(tmp_path, config):
    weights = random_weights(config)
    originals = authors_names(weights, config)
    if config.registers:  # timm's own file holds the sum, taken once in float32
        weights["cls_token"] = originals["cls_token"] + originals["pos_embed"][:, :1]
    features = load(tmp_path, weights).extract_patch_features(random_pictures())
    assert features.shape == (2, ROWS * COLUMNS, WIDTH) and features.std() > 0.1
    for named in (originals, transformers_names(weights, config, originals)):
        assert named.keys() != weights.keys()
        assert torch.equal(load(tmp_path, named).extract_patch_features(random_pictures()), features)


@pytest.mark.parametrize("size, registers", [("S", 0), ("B", 0), ("L", 0), ("g", 0), ("S", 4), ("B", 4)])
def test_three_dialects_are_bit_equal_at_the_published_widths(size, registers, tmp_path):
    (width, _, heads, hidden, gated), _ = PUBLISHED[size]
    config = DinoV2Config(width, 1, heads, hidden, gated, grid=2, registers=registers)
    drawn = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 0.1
    weights = {
        name: drawn.repeat(-(-math.prod(shape) // len(drawn)))[: math.prod(shape)].reshape(shape)
        for name, shape in list_expected_shapes(config).items()
    }
    originals = authors_names(weights, config)
    if registers:
        weights["cls_token"] = originals["cls_token"] + originals["pos_embed"][:, :1]
    nets = [
        load(tmp_path, named, metadata=None)
        for named in (weights, originals, transformers_names(weights, config, originals))
    ]
    pictures = random_pictures(1)[..., :16, :32]
    features = [net.extract_patch_features(pictures) for net in nets]
    assert features[0].shape == (1, 2, width) and features[0].std() > 0.01
    assert torch.equal(features[1], features[0]) and torch.equal(features[2], features[0])
    assert nets[0].vit.blocks[0].attn.num_heads == heads


@pytest.mark.parametrize("rows, columns, pixels", [(1, 1, 16), (2, 7, 16), (20, 36, 16), (22, 40, 32)])
def test_any_grid_of_tokens_is_answered_patch_by_patch(tmp_path, rows, columns, pixels):
    net = load(tmp_path, random_weights(PLAIN))
    features = net.extract_patch_features(torch.rand(1, 3, pixels * rows, pixels * columns), pixels)
    assert features.shape == (1, rows * columns, WIDTH) and features.isfinite().all()


@pytest.mark.parametrize("pixels", [16, 32])
def test_a_patch_shows_what_a_token_covers(pixels):
    colors = torch.rand(1, 3, 2, 3)
    prepared = prepare_pictures(colors.repeat_interleave(pixels, 2).repeat_interleave(pixels, 3), pixels)
    mean, std = (torch.tensor(rgb)[:, None, None] for rgb in (IMAGENET_MEAN, IMAGENET_STD))
    assert prepared.shape == (1, 3, 2 * 14, 3 * 14)
    torch.testing.assert_close(prepared[:, :, 7::14, 7::14], (colors - mean) / std, atol=1e-4, rtol=0)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_are_found_from_full_lists_of_shapes(size, registers, tmp_path):
    (width, depth, heads, hidden, gated), millions = PUBLISHED[size]
    config = DinoV2Config(width, depth, heads, hidden, gated, grid=37, registers=registers)
    with torch.device("meta"):
        weights = DinoV2(config).vit.state_dict()
    assert round(sum(value.numel() for value in weights.values()) / 1e6) == millions
    assert len(weights) == 14 * depth + (7 if registers else 6)
    originals = {"mask_token": torch.empty(1, width, device="meta")} | dict(weights)
    if registers:
        originals["register_tokens"] = originals.pop("reg_token")
        originals["pos_embed"] = torch.empty(1, 1 + 37 * 37, width, device="meta")
    if gated:
        originals = {
            k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in originals.items()
        }
    file = WeightFile(tmp_path / "dino.pth", originals, {})
    named = with_timm_names(file)
    assert named.keys() == weights.keys()
    assert find_config(named, file) == config
    assert {name: value.shape for name, value in named.items()} == {n: v.shape for n, v in weights.items()}
    assert list_expected_shapes(config) == {name: tuple(value.shape) for name, value in weights.items()}


@pytest.mark.parametrize("config", [PLAIN, GATED, REGISTERS], ids=["mlp", "swiglu", "registers"])
def test_features_are_those_of_transformers_own_dinov2(tmp_path, config):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, mlp_ratio=4)
    sizes |= dict(use_swiglu_ffn=config.gated, image_size=14 * GRID, patch_size=14)
    kind = "Dinov2WithRegisters" if config.registers else "Dinov2"
    sizes |= dict(num_register_tokens=config.registers) if config.registers else {}
    getattr(transformers, kind + "Config")(**sizes).save_pretrained(tmp_path)
    tensors = transformers_names(random_weights(config), config)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model_class = getattr(transformers, kind + "Model")
    reference, loading = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # At the size the positions were learned on, where no two programs resample them differently.
    pictures = torch.rand(1, 3, 16 * GRID, 16 * GRID, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(rgb)[:, None, None] for rgb in (IMAGENET_MEAN, IMAGENET_STD))
    resized = F.interpolate(pictures, (14 * GRID, 14 * GRID), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = reference.eval()((resized - mean) / std).last_hidden_state[:, 1 + config.registers :]
    torch.testing.assert_close(
        load(tmp_path, tensors).extract_patch_features(pictures), expected, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("y, x", [(0, 0), (0, 3), (2, 1)])
def test_each_patch_sees_its_own_16_pixels_in_y_x_order(tmp_path, y, x):
    net = load(tmp_path, random_weights(PLAIN))
    gray = torch.full((1, 3, 16 * ROWS, 16 * COLUMNS), 0.5)
    bright = gray.clone()
    bright[..., 16 * y : 16 * (y + 1), 16 * x : 16 * (x + 1)] = 1
    change = (net.extract_patch_features(bright) - net.extract_patch_features(gray)).norm(dim=-1)[0]
    assert change.argmax() == y * COLUMNS + x


def test_a_published_width_needs_no_metadata(tmp_path):
    small = DinoV2Config(384, 1, 6, hidden=1536, gated=False, grid=2, registers=0)
    net = load(tmp_path, random_weights(small), metadata=None)
    assert net.vit.blocks[0].attn.num_heads == 6


def test_only_the_giant_is_held_in_bfloat16_and_only_off_the_cpu(tmp_path):
    assert choose_dtype("cuda", GATED) == choose_dtype("cuda:1", GATED) == torch.bfloat16
    assert (
        choose_dtype("cuda", PLAIN)
        == choose_dtype("cpu", GATED)
        == choose_dtype("cpu", PLAIN)
        == torch.float32
    )
    net = load(tmp_path, random_weights(GATED))
    assert net.vit.norm.weight.dtype == torch.float32
    features = net.extract_patch_features(random_pictures(1))
    rounded = net.to(torch.bfloat16).extract_patch_features(random_pictures(1))
    assert rounded.dtype == torch.float32
    assert F.cosine_similarity(rounded, features, dim=-1).min() > 0.99


def test_an_original_pth_is_read(tmp_path):
    small = DinoV2Config(384, 1, 6, hidden=1536, gated=False, grid=2, registers=0)
    weights = random_weights(small)
    torch.save(authors_names(weights, small), tmp_path / "dinov2_pretrain.pth")
    net = load_dinov2(tmp_path / "dinov2_pretrain.pth")
    assert all(torch.equal(value, weights[name]) for name, value in net.vit.state_dict().items())


def test_the_teacher_is_frozen_and_leaves_random_numbers_alone(tmp_path):
    weights = random_weights(PLAIN)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    net = load(tmp_path, weights).train()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in net.modules())
    assert not net.extract_patch_features(random_pictures().requires_grad_()).requires_grad


def test_a_missing_weight_is_named(tmp_path):
    weights = random_weights(PLAIN)
    del weights["blocks.1.ls2.gamma"]
    with pytest.raises(ValueError, match=r"1 weights are missing \(blocks\.1\.ls2\.gamma\)"):
        load(tmp_path, weights)


def test_an_unknown_weight_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"1 are unknown \(head\.weight\)"):
        load(tmp_path, random_weights(PLAIN) | {"head.weight": torch.zeros(10, WIDTH)})


def test_a_query_without_its_key_is_refused(tmp_path):
    tensors = transformers_names(random_weights(PLAIN), PLAIN)
    del tensors["encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(ValueError, match=r"lacks encoder\.layer\.1\.attention\.attention\.key\.bias"):
        load(tmp_path, tensors)


def test_another_model_is_refused_with_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match="is not DINOv2.*text_model.embeddings.weight"):
        load(tmp_path, {"text_model.embeddings.weight": torch.zeros(2, 2)})


def test_another_patch_size_is_refused(tmp_path):
    weights = random_weights(PLAIN)
    weights["patch_embed.proj.weight"] = torch.zeros(WIDTH, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\[16, 16\] px.*patch14"):
        load(tmp_path, weights)


def test_an_unpublished_width_must_say_its_heads(tmp_path):
    with pytest.raises(ValueError, match="does not say how many attention heads"):
        load(tmp_path, random_weights(PLAIN), metadata=None)


@pytest.mark.parametrize("heads", ["5", "0", "-4", "four", "9" * 5000])
def test_impossible_heads_are_refused(tmp_path, heads):
    with pytest.raises(ValueError, match="width 32 must divide by it"):
        load(tmp_path, random_weights(PLAIN), {"heads": heads})


def test_an_absurd_depth_is_refused_before_anything_is_built(tmp_path):
    absurd = {f"blocks.{index}.x": torch.zeros(1) for index in range(200)}
    with pytest.raises(ValueError, match="depth is 200"):
        load(tmp_path, random_weights(PLAIN) | absurd)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 30, 32), (1, 3, 32, 40)])
def test_pictures_off_the_token_grid_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 16 px"):
        DinoV2(PLAIN).extract_patch_features(torch.zeros(shape))


@pytest.mark.parametrize("value", [-1.0, 255.0, float("nan")])
def test_pictures_outside_0_to_1_are_refused(value):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        DinoV2(PLAIN).extract_patch_features(torch.full((1, 3, 32, 32), value))
