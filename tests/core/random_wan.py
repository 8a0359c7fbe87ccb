"""Files of random weights and any size, as WAN's and DINOv2's lie on disk; loaded by path with `runpy`."""

from typing import NamedTuple

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from smra_core.encoders.dinov2 import DinoV2
from smra_core.encoders.dinov2_files import HEADS_KEY
from smra_core.native_names import native_dit_state, native_vae_state

WORDS = ("<pad>", "</s>", "<unk>", "a", "A", "picture", "of", "sks", "dog", "person", "is", "vvt", "walking")


class Sizes(NamedTuple):
    """What is chosen; everything else is as published."""

    heads: int = 1
    ffn: int = 16
    blocks: int = 2
    text: int = 8
    freq: int = 8
    vae: int = 4


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
    )
    torch.nn.init.normal_(dit.proj_out.weight, std=0.05)
    vae = AutoencoderKLWan(base_dim=sizes.vae, z_dim=16)
    write_random_text(folder, sizes.text)
    if layout == "diffusers":
        dit.save_pretrained(folder / "transformer")
        vae.save_pretrained(folder / "vae")
        return ["--model", str(folder)]
    save_file(native_dit_state(dit.state_dict()), folder / "dit.safetensors")
    save_file(native_vae_state(vae.state_dict()), folder / "vae.safetensors")
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
