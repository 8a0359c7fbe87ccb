import json

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from random_vaes import random_vae
from safetensors.torch import save_file

from smra_core.standalone import native_part
from smra_core.standalone.diffusers_wan import DiffusersCodec, DiffusersDenoiser
from smra_core.standalone.model_files import find_wan_files
from smra_core.storage.content_hash import fingerprint_weights
from smra_core.wan.module_names import to_native_dit_state, to_native_vae_state
from smra_core.wan.spec import LATENTS_22

SIZES = dict(num_attention_heads=1, attention_head_dim=128, ffn_dim=16, num_layers=2, text_dim=8, freq_dim=8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return WanTransformer3DModel(**SIZES).eval(), AutoencoderKLWan(base_dim=4, z_dim=16).eval()


@pytest.fixture
def native(models, tmp_path):
    dit, vae = models
    save_file(to_native_dit_state(dit.state_dict()), tmp_path / "dit.safetensors")
    save_file(to_native_vae_state(vae.state_dict()), tmp_path / "vae.safetensors")
    write_text_folder(tmp_path / "umt5")
    return tmp_path


TEXT_FILES = "config.json", "model.safetensors", "tokenizer.json"


def write_text_folder(folder):
    """Write empty files under the names that transformers gives; they are not read here."""
    folder.mkdir()
    for name in TEXT_FILES:
        (folder / name).touch()


@pytest.mark.parametrize("missing", TEXT_FILES)
def test_a_text_folder_without_a_part_is_refused_by_its_name(native, missing):
    (native / "umt5" / missing).unlink()
    with pytest.raises(ValueError, match=rf"umt5 holds no t\w+.*: it has none of {missing}"):
        files_of(native)


def files_of(folder, dit="dit.safetensors", vae="vae.safetensors"):
    return find_wan_files(str(folder / dit), str(folder / vae), str(folder / "umt5"))


def test_native_files_load_as_the_models_they_were(models, native):
    files = files_of(native)
    noisy, sigma, context = torch.randn(1, 16, 1, 4, 4), torch.tensor([0.5]), torch.randn(1, 3, 8)
    expected = DiffusersDenoiser(models[0]).velocity(noisy, sigma, context).velocity
    loaded = files.load_denoiser(torch.float32, CPU)
    torch.testing.assert_close(loaded.velocity(noisy, sigma, context).velocity, expected)
    codec, pixels = files.load_codec(torch.float32, CPU), torch.rand(1, 3, 5, 16, 16)
    torch.testing.assert_close(codec.encode(pixels), DiffusersCodec(models[1]).encode(pixels))
    assert (files.spec.blocks, files.spec.dim, files.spec.ffn) == (2, 128, 16)


def test_each_header_is_read_once(native, monkeypatch):
    read = []
    read_shapes = native_part.read_shapes
    monkeypatch.setattr(native_part, "read_shapes", lambda path: read.append(path.name) or read_shapes(path))
    files = files_of(native)
    assert files.spec.blocks == 2
    files.check()
    assert sorted(read) == ["dit.safetensors", "vae.safetensors"]


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_a_prefix_on_every_name_changes_nothing(models, native, prefix):
    state = {prefix + name: tensor for name, tensor in to_native_dit_state(models[0].state_dict()).items()}
    save_file(state, native / "prefixed.safetensors")
    files = files_of(native, "prefixed.safetensors")
    weights = files.load_denoiser(torch.float32, CPU).dit.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in models[0].state_dict().items())


def test_a_pickled_vae_is_read_as_plain_weights(models, native):
    torch.save(to_native_vae_state(models[1].state_dict()), native / "vae.pth")
    codec = files_of(native, vae="vae.pth").load_codec(torch.float32, CPU)
    assert torch.equal(codec.vae.post_quant_conv.weight, models[1].post_quant_conv.weight)


def test_a_diffusers_folder_loads(models, tmp_path):
    models[0].save_pretrained(tmp_path / "transformer")
    models[1].save_pretrained(tmp_path / "vae")
    for part in ("text_encoder", "tokenizer"):
        write_text_folder(tmp_path / part)
    files = find_wan_files(str(tmp_path))
    assert files.spec.blocks == 2
    weights = files.load_denoiser(torch.bfloat16, CPU).dit.patch_embedding.weight
    assert torch.equal(weights, models[0].patch_embedding.weight.bfloat16())


def test_a_changed_weight_changes_the_fingerprint(models, native):
    files = files_of(native)
    before, vae = files.transformer_fingerprint, files.vae_fingerprint
    state = to_native_dit_state(models[0].state_dict())
    state["head.head.bias"] = state["head.head.bias"] + 1
    save_file(state, native / "dit.safetensors")
    after = files_of(native)
    assert before != after.transformer_fingerprint and vae == after.vae_fingerprint


def test_large_files_are_told_apart_by_size_and_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("smra_core.storage.content_hash._WHOLE", 10)
    monkeypatch.setattr("smra_core.storage.content_hash._PIECE", 4)
    (tmp_path / "a").write_bytes(b"x" * 5000)
    (tmp_path / "b").write_bytes(b"x" * 4999 + b"y")
    (tmp_path / "c").write_bytes(b"x" * 5001)
    assert len({fingerprint_weights(tmp_path / name) for name in "abc"}) == 3


def save_changed(models, folder, change):
    state = to_native_dit_state(models[0].state_dict())
    change(state)
    save_file(state, folder / "dit.safetensors")


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_a_weight_too_many_or_too_few_is_named_before_anything_is_loaded(models, native, prefix):
    def change(state):
        state["blocks.1.self_attn.extra.weight"] = state.pop("blocks.1.norm3.bias")
        for name in list(state):
            state[prefix + name] = state.pop(name)

    save_changed(models, native, change)
    message = (
        r"dit.safetensors: 1 weights are missing \(blocks.1.norm3.bias\) and 1 are unknown \(blocks.1.self"
    )
    with pytest.raises(ValueError, match=message):
        files_of(native)


def test_a_block_that_is_not_there_is_named(models, native):
    save_changed(
        models, native, lambda s: [s.pop(name) for name in list(s) if name.startswith("blocks.0.self")]
    )
    with pytest.raises(ValueError, match="10 weights are missing .blocks.0.self_attn.k.bias"):
        files_of(native)
    renamed = lambda s: [s.update({n.replace("s.1.", "s.2."): s.pop(n)}) for n in list(s) if "blocks.1." in n]  # noqa: E731
    save_changed(models, native, renamed)
    with pytest.raises(ValueError, match="has 2 blocks, but no block 1. It is a damaged file, or one of"):
        files_of(native)


def quantized(state, scale_name, scale_of, dtype=torch.float8_e4m3fn):
    """Linears of the blocks as fp8 files hold them, and what they then mean."""
    stored, meant = {}, {}
    for name, value in state.items():
        module = name.removesuffix(".weight")
        if value.ndim == 2 and module != name and name.startswith("blocks."):
            scale = scale_of(value)
            stored[name] = (value / scale.reshape(-1, 1) if scale.numel() > 1 else value / scale).to(dtype)
            stored[module + scale_name] = scale
            wide = scale.reshape(-1, 1) if scale.numel() > 1 else scale
            meant[name] = stored[name].float() * wide
        else:
            stored[name] = meant[name] = value
    return stored, meant


def whole_scale(weight):
    return weight.abs().max() / 448


def row_scale(weight):
    return weight.abs().amax(1) / 448


@pytest.mark.parametrize("scale_name", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("scale_of", [whole_scale, row_scale])
def test_scaled_fp8_is_brought_back_to_what_it_means(models, native, scale_name, scale_of):
    stored, meant = quantized(to_native_dit_state(models[0].state_dict()), scale_name, scale_of)
    if scale_name == ".scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        stored["blocks.0.ffn.0.scale_input"] = torch.ones(())
    else:
        mark = json.dumps({"format": "float8_e4m3fn"}).encode()
        stored["blocks.0.ffn.0.comfy_quant"] = torch.frombuffer(bytearray(mark), dtype=torch.uint8)
    save_file(stored, native / "dit.safetensors")
    loaded = to_native_dit_state(files_of(native).load_denoiser(torch.float32, CPU).dit.state_dict())
    assert loaded.keys() == meant.keys()
    for name, value in meant.items():
        assert torch.equal(loaded[name], value), name
    original = models[0].state_dict()["blocks.0.ffn.net.0.proj.weight"]
    assert (loaded["blocks.0.ffn.0.weight"] - original).abs().max() < 0.07 * original.abs().max()


def hadamard(size):
    """The rotation as ComfyUI's quantizer defines it."""
    quarter = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix = quarter
    while len(matrix) < size:
        matrix = torch.kron(matrix, quarter)
    return matrix / size**0.5


def as_int8(state, scale_of, config, rotate=lambda weight: weight):
    """Linears of the blocks as INT8 files hold them."""
    stored = dict(state)
    for name, value in state.items():
        if value.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight"):
            rotated, module = rotate(value), name.removesuffix(".weight")
            scale = scale_of(rotated) * 448 / 127
            scale = scale[:, None] if scale.ndim else scale
            stored[name] = (rotated / scale).round().to(torch.int8)
            stored[f"{module}.weight_scale"] = scale
            mark = json.dumps({"format": "int8_tensorwise", **config}).encode()
            stored[f"{module}.comfy_quant"] = torch.frombuffer(bytearray(mark), dtype=torch.uint8)
    return stored


@pytest.mark.parametrize("scale_of, group", [(whole_scale, 0), (row_scale, 16), (row_scale, 4)])
def test_int8_is_brought_back_and_rotated_back(models, native, scale_of, group):
    state = to_native_dit_state(models[0].state_dict())
    matrix = hadamard(group) if group else None
    rotate = (lambda w: (w.unflatten(1, (-1, group)) @ matrix).flatten(1)) if group else (lambda w: w)
    rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
    config = {"params": rotation} if group == 4 else rotation  # both ways to write it are read
    save_file(as_int8(state, scale_of, config, rotate), native / "dit.safetensors")
    loaded = to_native_dit_state(files_of(native).load_denoiser(torch.float32, CPU).dit.state_dict())
    for name, value in state.items():
        assert (loaded[name] - value).norm() <= 0.02 * value.norm(), name
    if group:  # read without the rotation it would be another weight
        name = "blocks.0.ffn.0.weight"
        assert (rotate(state[name]) - state[name]).abs().max() > 0.5 * state[name].abs().max()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_plain_small_numbers_are_widened(models, native, dtype):
    state = {name: value.to(dtype) for name, value in to_native_dit_state(models[0].state_dict()).items()}
    save_file(state, native / "dit.safetensors")
    loaded = to_native_dit_state(files_of(native).load_denoiser(torch.float32, CPU).dit.state_dict())
    assert all(torch.equal(loaded[name], value.float()) for name, value in state.items())


def test_norms_and_modulations_stay_in_float32_beside_a_16_bit_model(native):
    dit = files_of(native).load_denoiser(torch.bfloat16, CPU).dit
    assert dit.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert dit.blocks[0].scale_shift_table.dtype == dit.blocks[0].norm2.weight.dtype == torch.float32


def comfy_quant(kind, **options):
    return torch.frombuffer(bytearray(json.dumps({"format": kind, **options}).encode()), dtype=torch.uint8)


def int8_layer(with_scale=True, **options):
    """A change that makes a layer one of INT8."""

    def change(state):
        name = "blocks.0.ffn.0"
        state[f"{name}.weight"] = state[f"{name}.weight"].to(torch.int8)
        state[f"{name}.comfy_quant"] = comfy_quant("int8_tensorwise", **options)
        if with_scale:
            state[f"{name}.weight_scale"] = torch.ones(())

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update({"blocks.0.ffn.0.weight_scale_2": torch.ones(())}), "quantized with NVFP4"),
        (lambda s: s.update({"blocks.0.ffn.0.weight.absmax": torch.ones(2)}), "quantized with bitsandbytes"),
        (lambda s: s.update({"blocks.0.ffn.0.comfy_quant": comfy_quant("mxfp8")}), "quantized as mxfp8"),
        (lambda s: s.update({"blocks.0.ffn.0.comfy_quant": torch.ones(3)}), "as something unreadable"),
        (int8_layer(with_scale=False), "quantized as int8_tensorwise"),
        (int8_layer(convrot=True, convrot_groupsize=8), "in groups of 8, which must be a power of 4"),
        (int8_layer(convrot=True, convrot_groupsize="x" * 99), "in groups of xxxxxxxxxxxxxxxxxxxx, which"),
        (int8_layer(convrot=True), "in groups of 256, which must be a power of 4 that divides"),
        (
            lambda s: s.update(
                {
                    "blocks.0.ffn.0.weight": s["blocks.0.ffn.0.weight"].to(torch.int8),
                    "blocks.0.ffn.0.weight_scale": torch.ones(()),
                }
            ),
            "quantized as int8",
        ),
        (
            lambda s: s.update(
                {
                    "blocks.0.ffn.0.weight": s["blocks.0.ffn.0.weight"].to(torch.float8_e4m3fn),
                    "blocks.0.ffn.0.weight_scale": torch.ones(16, 4),
                }
            ),
            r"is \(16, 128\) and its scale \(16, 4\); one number, or one for each output",
        ),
        (
            lambda s: s.update({"blocks.0.ffn.0.bias": torch.full((16,), float("nan"))}),
            "NaN or infinite in blocks.0.ffn.0.bias",
        ),
        (
            lambda s: s.update({"head.head.bias": torch.zeros(64, dtype=torch.int32)}),
            "stored as torch.int32",
        ),
    ],
)
def test_weights_that_cannot_be_read_back_are_refused(models, native, change, message):
    save_changed(models, native, change)
    with pytest.raises(ValueError, match=message):
        files_of(native).load_denoiser(torch.float32, CPU)


def test_a_file_in_diffusers_names_is_the_same_model(models, native):
    save_file(models[0].state_dict(), native / "dit.safetensors")
    save_file(models[1].state_dict(), native / "vae.safetensors")
    files = files_of(native)
    for loaded, model in (
        (files.load_denoiser(torch.float32, CPU).dit, models[0]),
        (files.load_codec(torch.float32, CPU).vae, models[1]),
    ):
        weights = {name.replace(".inner.", "."): value for name, value in loaded.state_dict().items()}
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_the_folder_of_the_authors_with_a_model_in_parts_loads(models, native):
    state = to_native_dit_state(models[0].state_dict())
    names, index = list(state), {}
    for part in range(2):
        file = f"diffusion_pytorch_model-0000{part + 1}-of-00002.safetensors"
        index |= {name: file for name in names[part::2]}
        save_file({name: state[name] for name in names[part::2]}, native / file)
    listing = native / "diffusion_pytorch_model.safetensors.index.json"
    listing.write_text(json.dumps({"weight_map": index}))
    torch.save(to_native_vae_state(models[1].state_dict()), native / "Wan2.1_VAE.pth")
    files = find_wan_files(str(native), None, str(native / "umt5"))
    weights = files.load_denoiser(torch.float32, CPU).dit.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in models[0].state_dict().items())
    before = fingerprint_weights(listing)
    save_file({name: state[name] + 1 for name in names[::2]}, native / index[names[0]])
    assert fingerprint_weights(listing) != before
    (native / index[names[0]]).unlink()
    with pytest.raises(ValueError, match="lacks diffusion_pytorch_model-00001-of-00002.safetensors of the"):
        find_wan_files(str(native), None, str(native / "umt5"))


def test_a_native_file_needs_its_vae_and_text_encoder(native):
    with pytest.raises(ValueError, match="holds the DiT alone. Give its VAE file with --vae"):
        find_wan_files(str(native / "dit.safetensors"))


@pytest.fixture
def native_5b(native):
    """The same folder with TI2V-5B in place of WAN 2.1, in the layout of its authors."""
    torch.manual_seed(0)
    dit = WanTransformer3DModel(**SIZES, in_channels=48, out_channels=48).eval()
    vae = random_vae(LATENTS_22).eval()
    save_file(to_native_dit_state(dit.state_dict()), native / "diffusion_pytorch_model.safetensors")
    torch.save(to_native_vae_state(vae.state_dict()), native / "Wan2.2_VAE.pth")
    return native, dit, vae


def test_ti2v_5b_of_the_authors_loads_as_the_models_it_was(native_5b):
    folder, dit, vae = native_5b
    files = find_wan_files(str(folder), None, str(folder / "umt5"))
    assert files.spec.latents is LATENTS_22
    noisy, sigma, context = torch.randn(1, 48, 2, 4, 4), torch.tensor([0.5]), torch.randn(1, 3, 8)
    expected = DiffusersDenoiser(dit).velocity(noisy, sigma, context).velocity
    loaded = files.load_denoiser(torch.float32, CPU)
    torch.testing.assert_close(loaded.velocity(noisy, sigma, context).velocity, expected)
    codec, pixels = files.load_codec(torch.float32, CPU), torch.rand(1, 3, 5, 32, 32)
    latents = codec.encode(pixels)
    assert latents.shape == (1, 48, 2, 2, 2)
    torch.testing.assert_close(latents, DiffusersCodec(vae).encode(pixels))
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (LATENTS_22.mean, LATENTS_22.std))
    torch.testing.assert_close(codec.vae.encode(pixels).latent_dist.mean, latents * std + mean)
    torch.testing.assert_close(codec.decode(latents), vae.decode(latents * std + mean).sample)


@pytest.mark.parametrize("dit, vae, message", [
    ("diffusion_pytorch_model.safetensors", "vae.safetensors", "WAN 2.1, .* Give --vae wan2.2_vae"),
    ("dit.safetensors", "Wan2.2_VAE.pth", "Wan 2.2 5B, with latents of 48 .* Give --vae wan_2.1_vae"),
])  # fmt: skip
def test_a_vae_of_the_other_version_is_refused(native_5b, dit, vae, message):
    with pytest.raises(ValueError, match=message):
        files_of(native_5b[0], dit, vae)


def test_the_vae_that_a_native_file_needs_is_named(native_5b):
    with pytest.raises(ValueError, match=r"with --vae \(wan2.2_vae.safetensors\)"):
        find_wan_files(str(native_5b[0] / "diffusion_pytorch_model.safetensors"))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_wan_files(str(tmp_path / "nowhere"))
    (tmp_path / "transformer").mkdir()
    with pytest.raises(ValueError, match="vae does not exist"):
        find_wan_files(str(tmp_path))


def test_another_vae_is_refused(native):
    state = to_native_vae_state(AutoencoderKLWan(base_dim=4, z_dim=4).state_dict())
    save_file(state, native / "vae.safetensors")
    with pytest.raises(ValueError, match="has 4 latent channels; WAN 2.1's VAE has 16"):
        files_of(native)


def test_folders_of_variants_that_only_comfyui_trains_are_refused(models, tmp_path):
    models[1].save_pretrained(tmp_path / "vae")
    (tmp_path / "transformer").mkdir()
    config = {"in_channels": 36, "num_attention_heads": 1, "image_dim": 1280}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="CLIP's features of an image, as I2V 2.1 does"):
        find_wan_files(str(tmp_path))
    config = {"in_channels": 16, "_class_name": "WanVACETransformer3DModel"}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds WanVACETransformer3DModel"):
        find_wan_files(str(tmp_path))
