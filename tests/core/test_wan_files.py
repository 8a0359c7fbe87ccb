import json

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file

from smra_core.diffusers_wan import DiffusersCodec, DiffusersDenoiser
from smra_core.file_identity import identity
from smra_core.native_names import native_dit_state, native_vae_state
from smra_core.wan_files import find_backbone

SIZES = dict(num_attention_heads=1, attention_head_dim=128, ffn_dim=16, num_layers=2, text_dim=8, freq_dim=8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return WanTransformer3DModel(**SIZES).eval(), AutoencoderKLWan(base_dim=4, z_dim=16).eval()


@pytest.fixture
def native(models, tmp_path):
    dit, vae = models
    save_file(native_dit_state(dit.state_dict()), tmp_path / "dit.safetensors")
    save_file(native_vae_state(vae.state_dict()), tmp_path / "vae.safetensors")
    (tmp_path / "umt5").mkdir()
    return tmp_path


def files_of(folder, dit="dit.safetensors", vae="vae.safetensors"):
    return find_backbone(str(folder / dit), str(folder / vae), str(folder / "umt5"))


def test_native_files_load_as_the_models_they_were(models, native):
    files = files_of(native)
    noisy, sigma, context = torch.randn(1, 16, 1, 4, 4), torch.tensor([0.5]), torch.randn(1, 3, 8)
    expected = DiffusersDenoiser(models[0]).velocity(noisy, sigma, context).velocity
    loaded = files.load_denoiser(torch.float32, CPU)
    torch.testing.assert_close(loaded.velocity(noisy, sigma, context).velocity, expected)
    codec, pixels = files.load_codec(torch.float32, CPU), torch.rand(1, 3, 5, 16, 16)
    torch.testing.assert_close(codec.encode(pixels), DiffusersCodec(models[1]).encode(pixels))
    assert (files.spec().blocks, files.spec().dim, files.spec().ffn) == (2, 128, 16)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_a_prefix_on_every_name_changes_nothing(models, native, prefix):
    state = {prefix + name: tensor for name, tensor in native_dit_state(models[0].state_dict()).items()}
    save_file(state, native / "prefixed.safetensors")
    files = files_of(native, "prefixed.safetensors")
    weights = files.load_denoiser(torch.float32, CPU).dit.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in models[0].state_dict().items())


def test_a_pickled_vae_is_read_as_plain_weights(models, native):
    torch.save(native_vae_state(models[1].state_dict()), native / "vae.pth")
    codec = files_of(native, vae="vae.pth").load_codec(torch.float32, CPU)
    assert torch.equal(codec.vae.post_quant_conv.weight, models[1].post_quant_conv.weight)


def test_a_diffusers_folder_loads(models, tmp_path):
    models[0].save_pretrained(tmp_path / "transformer")
    models[1].save_pretrained(tmp_path / "vae")
    files = find_backbone(str(tmp_path))
    assert files.spec().blocks == 2
    weights = files.load_denoiser(torch.bfloat16, CPU).dit.patch_embedding.weight
    assert torch.equal(weights, models[0].patch_embedding.weight.bfloat16())


def test_a_changed_weight_changes_the_fingerprint(models, native):
    before = files_of(native).fingerprint()
    state = native_dit_state(models[0].state_dict())
    state["head.head.bias"] = state["head.head.bias"] + 1
    save_file(state, native / "dit.safetensors")
    after = files_of(native).fingerprint()
    assert before["transformer"] != after["transformer"] and before["vae"] == after["vae"]


def test_large_files_are_told_apart_by_size_and_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("smra_core.file_identity._WHOLE", 10)
    monkeypatch.setattr("smra_core.file_identity._PIECE", 4)
    (tmp_path / "a").write_bytes(b"x" * 5000)
    (tmp_path / "b").write_bytes(b"x" * 4999 + b"y")
    (tmp_path / "c").write_bytes(b"x" * 5001)
    assert len({identity(tmp_path / name) for name in "abc"}) == 3


def save_changed(models, folder, change):
    state = native_dit_state(models[0].state_dict())
    change(state)
    save_file(state, folder / "dit.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s.update({"patch_embedding.weight": torch.zeros(128, 36, 1, 2, 2)}),
            "takes 36 channels or images; it is an image-to-video or control model",
        ),
        (lambda s: s.update({"vace_blocks.0.x": torch.zeros(1)}), "is a VACE model"),
        (lambda s: s.update({"blocks.0.ffn.0.scale_weight": torch.zeros(1)}), "is quantised"),
        (lambda s: s.pop("text_embedding.0.weight"), "text_embedding.0.weight is missing"),
    ],
)
def test_models_the_method_cannot_train_are_refused(models, native, change, message):
    save_changed(models, native, change)
    with pytest.raises(ValueError, match=message):
        files_of(native)


def test_a_native_file_needs_its_vae_and_text_encoder(native):
    with pytest.raises(ValueError, match="holds the DiT alone. Give its VAE file with --vae"):
        find_backbone(str(native / "dit.safetensors"))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_backbone(str(tmp_path / "nowhere"))
    (tmp_path / "transformer").mkdir()
    with pytest.raises(ValueError, match="vae does not exist"):
        find_backbone(str(tmp_path))


def test_another_vae_is_refused(models, native):
    state = native_vae_state(AutoencoderKLWan(base_dim=4, z_dim=4).state_dict())
    save_file(state, native / "vae.safetensors")
    with pytest.raises(ValueError, match="has 4 latent channels; WAN 2.1's VAE has 16"):
        files_of(native)


def test_an_image_to_video_folder_is_refused(models, tmp_path):
    models[1].save_pretrained(tmp_path / "vae")
    (tmp_path / "transformer").mkdir()
    config = {"in_channels": 36, "num_attention_heads": 1}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="image-to-video"):
        find_backbone(str(tmp_path))
