"""Files of random weights and any size, as WAN's and DINOv2's lie on disk, and the
published names and shapes.
"""

from typing import NamedTuple

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from random_vaes import vae_arguments
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from smra_core.encoders.dinov2 import DinoV2
from smra_core.encoders.dinov2_files import HEADS_KEY
from smra_core.wan.module_names import to_native_dit_state, to_native_vae_state
from smra_core.wan.spec import LATENTS_21, LatentSpace

WORDS = ("<pad>", "</s>", "<unk>", "a", "A", "picture", "of", "sks", "dog", "person", "is", "vvt", "walking")


TEXT, FREQ, CELLS = 4096, 256, 4


class Sizes(NamedTuple):
    """What is chosen; everything else is as published."""

    heads: int = 1
    ffn: int = 16
    blocks: int = 2
    text: int = 8
    freq: int = 8
    vae: int = 4
    latents: LatentSpace = LATENTS_21
    image_channels: int = 0
    """Channels of an image that the DiT takes beside those of the latents."""


def write_random_wan(folder, sizes, layout):
    """Write a WAN model; options of the command line that name it.

    `native` is dit.safetensors and vae.safetensors in WAN's own names with UMT5 in a folder, `diffusers` one
    folder of folders.
    """
    torch.manual_seed(0)
    dit = WanTransformer3DModel(
        num_attention_heads=sizes.heads,
        attention_head_dim=128,
        ffn_dim=sizes.ffn,
        num_layers=sizes.blocks,
        text_dim=sizes.text,
        freq_dim=sizes.freq,
        in_channels=sizes.latents.channels + sizes.image_channels,
        out_channels=sizes.latents.channels,
    )
    torch.nn.init.normal_(dit.proj_out.weight, std=0.05)
    vae = AutoencoderKLWan(**vae_arguments(sizes.latents, sizes.vae))
    write_random_text(folder, sizes.text)
    if layout == "diffusers":
        dit.save_pretrained(folder / "transformer")
        vae.save_pretrained(folder / "vae")
        return ["--model", str(folder)]
    save_file(to_native_dit_state(dit.state_dict()), folder / "dit.safetensors")
    save_file(to_native_vae_state(vae.state_dict()), folder / "vae.safetensors")
    model, vae_file = (str(folder / name) for name in ("dit.safetensors", "vae.safetensors"))
    return ["--model", model, "--vae", vae_file, "--text-encoder", str(folder)]


def write_random_text(folder, dim):
    config = UMT5Config(
        vocab_size=len(WORDS), d_model=dim, d_kv=4, d_ff=8, num_layers=1, num_heads=2, pad_token_id=0
    )
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(folder / "tokenizer")


def write_random_dinov2(path, config):
    torch.manual_seed(0)
    vit = DinoV2(config).vit
    for weight in vit.parameters():  # timm leaves some as the memory was
        torch.nn.init.normal_(weight, std=0.05)
    save_file(vit.state_dict(), path, {HEADS_KEY: str(config.heads)})


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def published_dit(spec, blocks=None, channels=None):
    """Names and shapes of a published text-to-video file, restated from WAN's own module."""
    dim, shapes, channels = spec.dim, {}, channels or spec.latents.channels
    shapes |= {"patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,)}
    shapes |= linear("text_embedding.0", dim, TEXT) | linear("text_embedding.2", dim, dim)
    shapes |= linear("time_embedding.0", dim, FREQ) | linear("time_embedding.2", dim, dim)
    shapes |= linear("time_projection.1", 6 * dim, dim) | linear(
        "head.head", CELLS * spec.latents.channels, dim
    )
    shapes |= {"head.modulation": (1, 2, dim)}
    for index in range(spec.blocks if blocks is None else blocks):
        block = f"blocks.{index}"
        for attention in ("self_attn", "cross_attn"):
            for role in "qkvo":
                shapes |= linear(f"{block}.{attention}.{role}", dim, dim)
            for norm in ("norm_q", "norm_k"):
                shapes |= {f"{block}.{attention}.{norm}.weight": (dim,)}
        shapes |= linear(f"{block}.ffn.0", spec.ffn, dim) | linear(f"{block}.ffn.2", dim, spec.ffn)
        shapes |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        shapes |= {f"{block}.modulation": (1, 6, dim)}
    return shapes


def conv(name, outputs, inputs, *kernel):
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def residual(name, inputs, outputs):
    shapes = {f"{name}.residual.0.gamma": (inputs, 1, 1, 1), f"{name}.residual.3.gamma": (outputs, 1, 1, 1)}
    shapes |= conv(f"{name}.residual.2", outputs, inputs, 3, 3, 3)
    shapes |= conv(f"{name}.residual.6", outputs, outputs, 3, 3, 3)
    return shapes | (conv(f"{name}.shortcut", outputs, inputs, 1, 1, 1) if inputs != outputs else {})


def middle(name, width):
    shapes = residual(f"{name}.middle.0", width, width) | residual(f"{name}.middle.2", width, width)
    shapes |= {f"{name}.middle.1.norm.gamma": (width, 1, 1)}
    shapes |= conv(f"{name}.middle.1.to_qkv", 3 * width, width, 1, 1)
    return shapes | conv(f"{name}.middle.1.proj", width, width, 1, 1)


def published_vae(base=96):
    """Names and shapes of Wan2.1_VAE.pth and of its repackaged file, restated from WAN's own module."""
    widths = [base, base, 2 * base, 4 * base, 4 * base]
    shapes = conv("conv1", 32, 32, 1, 1, 1) | conv("conv2", 16, 16, 1, 1, 1)
    shapes |= conv("encoder.conv1", base, 3, 3, 3, 3) | middle("encoder", widths[-1])
    shapes |= {"encoder.head.0.gamma": (widths[-1], 1, 1, 1)} | conv(
        "encoder.head.2", 32, widths[-1], 3, 3, 3
    )
    place = 0
    for stage in range(4):
        for inputs in (widths[stage], widths[stage + 1]):
            shapes |= residual(f"encoder.downsamples.{place}", inputs, widths[stage + 1])
            place += 1
        if stage < 3:
            name, width = f"encoder.downsamples.{place}", widths[stage + 1]
            shapes |= conv(f"{name}.resample.1", width, width, 3, 3)
            shapes |= conv(f"{name}.time_conv", width, width, 3, 1, 1) if stage else {}
            place += 1
    shapes |= conv("decoder.conv1", 4 * base, 16, 3, 3, 3) | middle("decoder", 4 * base)
    shapes |= {"decoder.head.0.gamma": (base, 1, 1, 1)} | conv("decoder.head.2", 3, base, 3, 3, 3)
    place = 0
    for stage, (inputs, width) in enumerate([(4, 4), (2, 4), (2, 2), (1, 1)]):
        for number in range(3):
            first = inputs if number == 0 else width
            shapes |= residual(f"decoder.upsamples.{place}", first * base, width * base)
            place += 1
        if stage < 3:
            name = f"decoder.upsamples.{place}"
            shapes |= conv(f"{name}.resample.1", width * base // 2, width * base, 3, 3)
            shapes |= conv(f"{name}.time_conv", 2 * width * base, width * base, 3, 1, 1) if stage < 2 else {}
            place += 1
    return shapes


def published_vae_22(base=160, wide=256):
    """Names and shapes of Wan2.2_VAE.pth and of its repackaged file, restated from WAN's own module."""
    widths = [base, base, 2 * base, 4 * base, 4 * base]
    shapes = conv("conv1", 96, 96, 1, 1, 1) | conv("conv2", 48, 48, 1, 1, 1)
    shapes |= conv("encoder.conv1", base, 12, 3, 3, 3) | middle("encoder", widths[-1])
    shapes |= {"encoder.head.0.gamma": (widths[-1], 1, 1, 1)}
    shapes |= conv("encoder.head.2", 96, widths[-1], 3, 3, 3)
    for stage in range(4):
        name, width = f"encoder.downsamples.{stage}.downsamples", widths[stage + 1]
        shapes |= residual(f"{name}.0", widths[stage], width) | residual(f"{name}.1", width, width)
        shapes |= conv(f"{name}.2.resample.1", width, width, 3, 3) if stage < 3 else {}
        shapes |= conv(f"{name}.2.time_conv", width, width, 3, 1, 1) if stage in (1, 2) else {}
    widths = [4 * wide, 4 * wide, 4 * wide, 2 * wide, wide]
    shapes |= conv("decoder.conv1", widths[0], 48, 3, 3, 3) | middle("decoder", widths[0])
    shapes |= {"decoder.head.0.gamma": (wide, 1, 1, 1)} | conv("decoder.head.2", 12, wide, 3, 3, 3)
    for stage in range(4):
        name, width = f"decoder.upsamples.{stage}.upsamples", widths[stage + 1]
        for number, inputs in enumerate((widths[stage], width, width)):
            shapes |= residual(f"{name}.{number}", inputs, width)
        shapes |= conv(f"{name}.3.resample.1", width, width, 3, 3) if stage < 3 else {}
        shapes |= conv(f"{name}.3.time_conv", 2 * width, width, 3, 1, 1) if stage < 2 else {}
    return shapes
