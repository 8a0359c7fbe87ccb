"""Headers alone: the full published lists of names and shapes fit, and what is not served is named."""

import pytest
from diffusers import WanTransformer3DModel
from random_models import CELLS, published_dit, published_vae, published_vae_22

from smra_core.standalone.checkpoint_kind import (
    build_dit_config,
    build_vae_config,
    find_prefix,
    guess_text_kind,
)
from smra_core.standalone.checkpoint_weights import check_native
from smra_core.standalone.diffusers_wan import read_spec
from smra_core.standalone.native_part import DIT, VAE
from smra_core.wan.module_names import choose_vae_names, to_native_dit_name
from smra_core.wan.spec import LATENTS_21, LATENTS_22, SPECS, WAN_1_3B, WAN_5B, WAN_14B

NAMES_IN_DIT = {WAN_1_3B: 825, WAN_14B: 1095, WAN_5B: 825}
"""15 outside the blocks and 27 in each."""
VAES = {LATENTS_21: (published_vae, 194), LATENTS_22: (published_vae_22, 196)}
"""Lists of the published VAEs, and their lengths: Wan 2.2's has a shortcut with weights more."""


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_full_list_of_a_published_dit_fits_and_no_name_is_spare(spec):
    shapes = published_dit(spec)
    assert len(shapes) == NAMES_IN_DIT[spec]
    model = DIT.build_empty(shapes, "file")
    check_native(model, to_native_dit_name, shapes, "file")
    assert (model.config.num_layers, model.config.ffn_dim) == (spec.blocks, spec.ffn)
    assert {to_native_dit_name(name) for name in model.state_dict()} == shapes.keys()
    assert all(value.is_meta for value in model.state_dict().values())
    assert isinstance(model, WanTransformer3DModel)


@pytest.mark.parametrize("latents", VAES, ids=lambda latents: latents.name)
def test_the_full_list_of_a_published_vae_fits(latents):
    published, count = VAES[latents]
    shapes = published()
    assert len(shapes) == count
    model = VAE.build_empty(shapes, "file")
    VAE.check_shapes(shapes, "file")
    to_native = choose_vae_names(model.state_dict())
    assert {to_native(name) for name in model.state_dict()} == shapes.keys()
    config = model.config
    assert (config.z_dim, config.scale_factor_spatial) == (latents.channels, latents.stride)


def test_native_names_stay_as_they_are():
    assert all(to_native_dit_name(name) == name for name in published_dit(WAN_1_3B, blocks=2))
    for published, _ in VAES.values():
        names = published()
        assert all(choose_vae_names(names)(name) == name for name in names)


SMALL = published_dit(WAN_1_3B, blocks=1)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("vace_patch_embedding.weight", "VACE"),
        ("vace_blocks.0.before_proj.weight", "VACE"),
        ("control_adapter.conv.weight", "Fun Camera"),
        ("casual_audio_encoder.encoder.final_linear.weight", "S2V"),
        ("audio_proj.audio_proj_glob_1.layer.bias", "HuMo"),
        ("face_adapter.fuser_blocks.0.k_norm.weight", "Animate"),
        ("pose_patch_embedding.weight", "Animate"),
        ("patch_embedding_mask.weight", "SCAIL 2"),
        ("patch_embedding_pose.weight", "SCAIL"),
        ("patch_embedding_global.weight", "WanDancer"),
        ("blocks.0.audio_cross_attn.kv_linear.weight", "MultiTalk"),
        ("blocks.0.cam_encoder.weight", "ReCamMaster"),
        ("fps_embedding.weight", "SkyReels"),
        ("img_emb.emb_pos", "FLF2V"),
        ("img_emb.proj.0.bias", "I2V"),
        ("ref_conv.weight", "Fun Control"),
    ],
)
def test_variants_are_refused_by_their_names(name, kind):
    # Those with pictures also take more channels: the variant's own name is the better word.
    extra = {"img_emb.proj.0.bias": (8,)} if kind in ("FLF2V", "Fun Camera", "Animate") else {}
    shapes = published_dit(WAN_1_3B, blocks=1, channels=36) | extra | {name: (8,)}
    with pytest.raises(
        ValueError, match=f"x.safetensors is WAN {kind}.*the method needs a model that makes videos from text"
    ):
        build_dit_config(shapes, "x.safetensors")


@pytest.mark.parametrize(
    "channels, out, kind",
    [(24, 24, "a control model"), (36, 36, "a control model"), (48, 16, "a control model, such as Fun")],
)
def test_other_channels_are_refused_with_what_they_mean(channels, out, kind):
    shapes = published_dit(WAN_1_3B, blocks=1, channels=channels)
    shapes["head.head.weight"] = (CELLS * out, WAN_1_3B.dim)
    with pytest.raises(ValueError, match=f"takes {channels} channels and gives {out}: .*{kind}"):
        build_dit_config(shapes, "file")


def test_an_image_to_video_expert_takes_the_channels_of_a_first_frame_besides():
    shapes = published_dit(WAN_1_3B, blocks=1, channels=36)
    config = build_dit_config(shapes, "file")
    assert (config["in_channels"], config["out_channels"]) == (36, 16)
    spec = read_spec(config)
    assert spec.input_channels == 36 and spec.latents == LATENTS_21 and "image to video" in spec.name


@pytest.mark.parametrize(
    "names, kind",
    [
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder"),
        (published_vae(), "a WAN VAE"),
        (["diffusion_model.blocks.0.ffn.0.lora_A.weight"], "a LoRA"),
        (["lora_unet_blocks_0_ffn_0.lora_down.weight"], "a LoRA"),
        (["double_blocks.0.img_attn.qkv.weight"], "Flux, Chroma or HunyuanVideo"),
        (["input_blocks.0.0.weight"], "a Stable Diffusion U-Net"),
        (["vision_model.encoder.layers.0.mlp.fc1.weight"], "a CLIP vision encoder"),
    ],
)
def test_other_models_are_recognized(names, kind):
    with pytest.raises(ValueError, match=f"is not a WAN DiT: patch_embedding.weight .* looks like {kind}"):
        build_dit_config(dict.fromkeys(names, (1,)), "file")


def test_an_unknown_file_shows_what_it_has():
    with pytest.raises(ValueError, match="it has a, b, c, d. Choose"):
        build_dit_config(dict.fromkeys("dcba", (1,)), "file")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"blocks.999.ffn.0.weight": (1, 1)}, "has 2 blocks, but no block 1"),
        ({"blocks.0.ffn.0.weight": (1 << 40, 0)}, "its ffn_dim is 1099511627776"),
        ({"patch_embedding.weight": (1 << 40, 16, 1, 2, 2)}, "its num_attention_heads is 8589934592"),
        ({"patch_embedding.weight": (0, 16, 1, 2, 2)}, "its num_attention_heads is 0"),
        ({"patch_embedding.weight": (1536,)}, "patch_embedding.weight is missing or misshapen"),
        ({f"blocks.{n}.x": () for n in range(150)}, "its num_layers is 150"),
    ],
)
def test_absurd_headers_are_refused_before_anything_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        build_dit_config(SMALL | change, "file")


@pytest.mark.parametrize("prefix", ["", "model.", "diffusion_model.", "model.diffusion_model."])
def test_the_longest_prefix_counts(prefix):
    assert find_prefix([prefix + name for name in SMALL]) == prefix


@pytest.mark.parametrize(
    "shapes, message",
    [
        (published_vae_22() | {"conv2.weight": (16,) * 5}, "16 latent channels; Wan 2.2 5B's VAE has 48"),
        (published_vae_22() | {"encoder.conv1.weight": (160, 3, 3, 3, 3)}, "take and give 12 channels"),
        (published_vae_22() | {"decoder.head.2.weight": (3, 256, 3, 3, 3)}, "take and give 12 channels"),
        (published_vae_22(base=1 << 30), "is no whole VAE"),
        (SMALL, "is not a WAN VAE: it has blocks.0"),
        ({"decoder.mid.block_1.norm1.weight": (1,)}, "looks like a VAE of Stable Diffusion or Flux"),
        (
            {"decoder.head.0.gamma": (1 << 40, 1, 1, 1), "conv2.weight": (16,) * 5},
            "its width is 1099511627776",
        ),
        ({"decoder.head.0.gamma": (96, 1, 1, 1), "conv2.weight": (48,) * 5}, "48 latent channels"),
    ],
)
def test_other_vaes_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        build_vae_config(shapes, "file")


def test_t5_is_not_umt5():
    shapes = {"shared.weight": (32128, 4096), "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}
    assert guess_text_kind(shapes) == "T5 of width 4096, not UMT5 of width 4096"
