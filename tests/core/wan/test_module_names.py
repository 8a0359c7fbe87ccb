import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from random_models import published_vae_22
from random_vaes import random_vae

from smra_core.wan.module_names import (
    to_diffusers_linear,
    to_native_dit_state,
    to_native_linear,
    to_native_vae_state,
)
from smra_core.wan.spec import LATENTS_22, WAN_1_3B


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_diffusers_reads_a_dit_under_our_native_names_as_the_one_it_was():
    dit = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=16, ffn_dim=8, num_layers=2, text_dim=8, freq_dim=8
    )
    state = dit.state_dict()
    native = to_native_dit_state(state)
    assert set(WAN_1_3B.linear_names()[:20]) <= {name.removesuffix(".weight") for name in native}
    same(convert_wan_transformer_to_diffusers(dict(native)), state)


def test_diffusers_reads_a_vae_under_our_native_names_as_the_one_it_was():
    state = AutoencoderKLWan(base_dim=4, z_dim=4).state_dict()
    native = to_native_vae_state(state)
    assert {
        "conv1.weight",
        "conv2.weight",
        "encoder.conv1.weight",
        "decoder.middle.0.residual.0.gamma",
    } <= set(native)
    same(convert_wan_vae_to_diffusers(dict(native)), state)


def test_the_stages_of_wan_22s_vae_keep_their_numbers():
    state = random_vae(LATENTS_22).state_dict()
    native = to_native_vae_state(state)
    assert len(native) == len(state)
    assert native.keys() == published_vae_22().keys()
    for ours, theirs in [
        (
            "decoder.upsamples.1.upsamples.3.time_conv.weight",
            "decoder.up_blocks.1.upsampler.time_conv.weight",
        ),
        (
            "encoder.downsamples.2.downsamples.2.resample.1.bias",
            "encoder.down_blocks.2.downsampler.resample.1.bias",
        ),
        (
            "decoder.upsamples.3.upsamples.0.shortcut.weight",
            "decoder.up_blocks.3.resnets.0.conv_shortcut.weight",
        ),
    ]:
        assert torch.equal(native[ours], state[theirs])


@pytest.mark.parametrize(
    "native, theirs",
    [
        ("blocks.3.self_attn.q", "blocks.3.attn1.to_q"),
        ("blocks.12.cross_attn.o", "blocks.12.attn2.to_out.0"),
        ("blocks.0.ffn.0", "blocks.0.ffn.net.0.proj"),
        ("blocks.0.ffn.2", "blocks.0.ffn.net.2"),
    ],
)
def test_linears_go_both_ways(native, theirs):
    assert to_diffusers_linear(native) == theirs
    assert to_native_linear(theirs) == native


def test_what_is_no_linear_has_no_native_name():
    assert to_native_linear("blocks.0.norm1") is None
    assert to_native_linear("vace_blocks.0.attn1.to_q") is None
