"""Random DINOv2 weights, and the three dialects that their names are published in."""

import torch

from smra_core.encoders.dinov2 import DinoV2


def random_weights(config, seed=0):
    """Weights in timm's names, none of them zero or one, so that a swap of any two shows."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: value.shape for name, value in DinoV2(config).vit.state_dict().items()}
    return {
        name: 0.2 * torch.randn(shape, generator=generator) + ("norm" in name)
        for name, shape in shapes.items()
    }


def authors_names(weights, config):
    """Back to the names of facebookresearch's .pth files."""
    renamed = {"mask_token": torch.zeros(1, config.width)} | weights
    if config.gated:
        renamed = {
            k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in renamed.items()
        }
    if config.registers:  # one vector, split at will between class token and its position
        renamed["register_tokens"] = renamed.pop("reg_token")
        class_position = torch.full((1, 1, config.width), 0.25)
        renamed["cls_token"] = weights["cls_token"] - class_position
        renamed["pos_embed"] = torch.cat([class_position, weights["pos_embed"]], 1)
    return renamed


def transformers_names(weights, config, originals=None):
    """Back to the names that `Dinov2Model.save_pretrained` writes."""
    top = originals or authors_names(weights, config)
    named = {
        "embeddings.cls_token": top["cls_token"],
        "embeddings.mask_token": top["mask_token"],
        "embeddings.position_embeddings": top["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": top["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": top["patch_embed.proj.bias"],
        "layernorm.weight": top["norm.weight"],
        "layernorm.bias": top["norm.bias"],
    }
    if config.registers:
        named["embeddings.register_tokens"] = top["register_tokens"]
    for block in range(config.depth):
        named |= transformers_block(weights, config, f"blocks.{block}", f"encoder.layer.{block}")
    return named


def transformers_block(weights, config, ours, theirs):
    named = {
        f"{theirs}.layer_scale1.lambda1": weights[f"{ours}.ls1.gamma"],
        f"{theirs}.layer_scale2.lambda1": weights[f"{ours}.ls2.gamma"],
    }
    first, second = ("weights_in", "weights_out") if config.gated else ("fc1", "fc2")
    for kind in ("weight", "bias"):
        named |= {
            f"{theirs}.norm1.{kind}": weights[f"{ours}.norm1.{kind}"],
            f"{theirs}.norm2.{kind}": weights[f"{ours}.norm2.{kind}"],
            f"{theirs}.attention.output.dense.{kind}": weights[f"{ours}.attn.proj.{kind}"],
            f"{theirs}.mlp.{first}.{kind}": weights[f"{ours}.mlp.fc1.{kind}"],
            f"{theirs}.mlp.{second}.{kind}": weights[f"{ours}.mlp.fc2.{kind}"],
        }
        parts = weights[f"{ours}.attn.qkv.{kind}"].chunk(3)
        for role, part in zip(("query", "key", "value"), parts, strict=True):
            named[f"{theirs}.attention.attention.{role}.{kind}"] = part.contiguous()
    return named
