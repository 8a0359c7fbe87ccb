"""A random CLIP and a random DINO of a few thousand weights, in the folders and files that people have."""

import json

import torch

SIDE, PATCH, CHANNELS = 32, 16, 8
DINO_WIDTH = 64


def write_clip(folder, channels=CHANNELS):
    """Write a random CLIP as a folder of transformers, with a tokenizer of single letters; return it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = tower | dict(vocab_size=54, max_position_embeddings=12, bos_token_id=0, eos_token_id=1)
    config = CLIPConfig(
        text_config=text | dict(pad_token_id=1),
        vision_config=tower | dict(image_size=SIDE, patch_size=PATCH),
        projection_dim=channels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def build_dino():
    """Build a random ViT of transformers with DINO's names and heads of 64 channels."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=DINO_WIDTH, num_hidden_layers=2, num_attention_heads=1, intermediate_size=4 * DINO_WIDTH,
        image_size=SIDE, patch_size=PATCH, layer_norm_eps=1e-6,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ViTModel(config, add_pooling_layer=False).eval()


def to_timm_names(weights):
    """Return the weights of `build_dino` under the names of timm and of DINO's authors."""
    named = {
        "cls_token": weights["embeddings.cls_token"],
        "pos_embed": weights["embeddings.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        named[f"patch_embed.proj.{kind}"] = weights[f"embeddings.patch_embeddings.projection.{kind}"]
        named[f"norm.{kind}"] = weights[f"layernorm.{kind}"]
        for block in range(2):
            theirs, ours = f"encoder.layer.{block}", f"blocks.{block}"
            parts = [weights[f"{theirs}.attention.attention.{r}.{kind}"] for r in ("query", "key", "value")]
            named |= {
                f"{ours}.attn.qkv.{kind}": torch.cat(parts),
                f"{ours}.attn.proj.{kind}": weights[f"{theirs}.attention.output.dense.{kind}"],
                f"{ours}.norm1.{kind}": weights[f"{theirs}.layernorm_before.{kind}"],
                f"{ours}.norm2.{kind}": weights[f"{theirs}.layernorm_after.{kind}"],
                f"{ours}.mlp.fc1.{kind}": weights[f"{theirs}.intermediate.dense.{kind}"],
                f"{ours}.mlp.fc2.{kind}": weights[f"{theirs}.output.dense.{kind}"],
            }
    return named
