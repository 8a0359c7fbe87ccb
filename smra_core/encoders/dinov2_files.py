"""Convert DINOv2 weights to timm's names, and find the sizes of the net from their shapes.

Three kinds of files are read, each with or without registers: timm's safetensors, the authors' .pth
(`mask_token`, `mlp.w12`), and the files of transformers (`embeddings.*`, `encoder.layer.N.*`) that ComfyUI
keeps in clip_vision.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from ..storage.weight_check import join_names, rename_keys
from ..storage.weight_file import WeightFile

HEADS_KEY = "heads"
"""Metadata entry with the number of attention heads of a net whose width was not published."""
PATCH = 14
"""Width and height of a patch in pixels."""
_HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}
"""Number of attention heads by width, for ViT-S, B, L and g; each head has 64 channels. No shape tells it."""
_PATCH_WEIGHT = "patch_embed.proj.weight"
_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_MOST_BLOCKS, _WIDEST, _LARGEST_GRID, _MOST_REGISTERS = 64, 4096, 128, 64

_TRANSFORMERS = [
    (re.compile(rf"^{pattern}\.(weight|bias)$"), name)
    for pattern, name in (
        (r"embeddings\.patch_embeddings\.projection", r"patch_embed.proj.\1"),
        (r"encoder\.layer\.(\d+)\.(norm[12])", r"blocks.\1.\2.\3"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"blocks.\1.attn.proj.\2"),
        (r"encoder\.layer\.(\d+)\.mlp\.(fc[12])", r"blocks.\1.mlp.\2.\3"),
        (r"encoder\.layer\.(\d+)\.mlp\.weights_in", r"blocks.\1.mlp.fc1.\2"),
        (r"encoder\.layer\.(\d+)\.mlp\.weights_out", r"blocks.\1.mlp.fc2.\2"),
        (r"layernorm", r"norm.\1"),
    )
] + [
    (re.compile(r"^embeddings\.(cls_token|mask_token|register_tokens)$"), r"\1"),
    (re.compile(r"^embeddings\.position_embeddings$"), "pos_embed"),
    (re.compile(r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$"), r"blocks.\1.ls\2.gamma"),
]
_AUTHORS = [
    (re.compile(r"^(blocks\.\d+\.mlp)\.w12\."), r"\1.fc1."),
    (re.compile(r"^(blocks\.\d+\.mlp)\.w3\."), r"\1.fc2."),
]
_QUERY = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


@dataclass(frozen=True)
class DinoV2Config:
    """Sizes of a DINOv2 net, a vision transformer on 14 px patches."""

    width: int
    depth: int
    heads: int
    hidden: int
    """Outputs of a feed-forward net's first linear, both halves together if it is gated (SwiGLU)."""
    gated: bool
    grid: int
    """Patches along each side of the square that the position embeddings were trained on."""
    registers: int


def is_dinov2(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether these names and shapes are DINOv2's, in any of the three naming schemes.

    A patch of 14 px and a layer scale in each block are what DINOv2 has, and CLIP and DINOv3 have not.
    """
    for patch, scale in (
        (_PATCH_WEIGHT, "blocks.0.ls1.gamma"),
        ("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layer_scale1.lambda1"),
    ):
        if tuple(shapes.get(patch, ()))[1:] == (3, PATCH, PATCH) and scale in shapes:
            return True
    return False


def with_timm_names(file: WeightFile) -> dict[str, Tensor]:
    """Return all tensors under timm's names, without the mask token, which only pre-training uses.

    ValueError if the file has none of the three naming schemes, or only some of query, key and value.
    """
    tensors = _from_transformers(file) if _has_transformers_names(file) else file.tensors
    tensors = rename_keys(tensors, lambda name: _rename_by_rules(name, _AUTHORS), str(file.path))
    tensors.pop("mask_token", None)
    if _PATCH_WEIGHT not in tensors:
        raise ValueError(
            f"{file.path} is not DINOv2: it has no {_PATCH_WEIGHT}, but for example "
            f"{join_names(sorted(file.tensors))}. Choose dinov2_vitg14_pretrain.pth of "
            "facebookresearch/dinov2, facebook/dinov2-giant, or timm/vit_giant_patch14_dinov2.lvd142m."
        )
    return _fold_class_position(tensors, file) if "register_tokens" in tensors else tensors


def find_config(tensors: dict[str, Tensor], file: WeightFile) -> DinoV2Config:
    """Find the sizes of a net from its tensors in timm's names.

    The number of heads comes from the file's metadata if the width was not published. ValueError if the
    shapes are not those of DINOv2, or if the number of heads is unknown.
    """
    patch, position, mlp_in, mlp_out = (
        _require_tensor(tensors, name, dims, file)
        for name, dims in (
            (_PATCH_WEIGHT, 4),
            ("pos_embed", 3),
            ("blocks.0.mlp.fc1.weight", 2),
            ("blocks.0.mlp.fc2.weight", 2),
        )
    )
    width, channels, *patch_size = patch.shape
    if channels != 3 or patch_size != [PATCH, PATCH]:
        raise ValueError(
            f"{file.path} cuts {channels} channels into patches of {patch_size} px; DINOv2 cuts RGB into "
            f"{PATCH} px patches. Choose a file with patch14 or vit*14 in its name."
        )
    registers = _require_tensor(tensors, "reg_token", 3, file).shape[1] if "reg_token" in tensors else 0
    config = DinoV2Config(
        width=width,
        depth=len({match[1] for name in tensors if (match := _BLOCK.match(name))}),
        heads=_find_heads(width, file),
        hidden=mlp_in.shape[0],
        gated=mlp_out.shape[1] * 2 == mlp_in.shape[0],
        grid=isqrt(max(0, position.shape[1] - (0 if registers else 1))),
        registers=registers,
    )
    _check_sizes(config, file)
    return config


def list_expected_shapes(config: DinoV2Config) -> dict[str, tuple[int, ...]]:
    """Return timm's names of all tensors in a net of these sizes, with their shapes."""
    width, positions = config.width, config.grid**2 + (0 if config.registers else 1)
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, positions, width)}
    if config.registers:
        shapes["reg_token"] = (1, config.registers, width)
    shapes |= {_PATCH_WEIGHT: (width, 3, PATCH, PATCH), "patch_embed.proj.bias": (width,)}
    linears = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (config.hidden, width),
        "mlp.fc2": (width, config.hidden // 2 if config.gated else config.hidden),
    }
    vectors = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma")
    for block in (f"blocks.{number}" for number in range(config.depth)):
        shapes |= {f"{block}.{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{block}.{name}.bias": shape[:1] for name, shape in linears.items()}
        shapes |= {f"{block}.{name}": (width,) for name in vectors}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def _has_transformers_names(file: WeightFile) -> bool:
    return "embeddings.patch_embeddings.projection.weight" in file.tensors


def _from_transformers(file: WeightFile) -> dict[str, Tensor]:
    rest = {name: value for name, value in file.tensors.items() if not _QUERY.match(name)}
    named = rename_keys(rest, lambda name: _rename_by_rules(name, _TRANSFORMERS), str(file.path))
    for block, kind in sorted({(m[1], m[3]) for n in file.tensors if (m := _QUERY.match(n))}):
        prefix = f"encoder.layer.{block}.attention.attention"
        parts = [f"{prefix}.{role}.{kind}" for role in ("query", "key", "value")]
        if lacking := [name for name in parts if name not in file.tensors]:
            raise ValueError(f"{file.path} lacks {join_names(lacking)}. Download the file again.")
        named[f"blocks.{block}.attn.qkv.{kind}"] = _join_query_key_value(parts, file)
    return named


def _join_query_key_value(names: list[str], file: WeightFile) -> Tensor:
    parts = [file.tensors[name] for name in names]
    if parts[0].ndim == 0 or len({(part.shape, part.dtype) for part in parts}) > 1:
        seen = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in parts)
        raise ValueError(
            f"{file.path}: {join_names(names)} are {seen}; they must be alike. Download it again."
        )
    return torch.cat(parts)


def _rename_by_rules(name: str, rules: list[tuple[re.Pattern, str]]) -> str:
    for pattern, replacement in rules:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return name


def _fold_class_position(tensors: dict[str, Tensor], file: WeightFile) -> dict[str, Tensor]:
    """Add the class token's position embedding to the token, because timm keeps only those of patches for
    nets with registers.
    """
    folded = dict(tensors)
    folded["reg_token"] = folded.pop("register_tokens")
    token, positions = (_require_tensor(tensors, name, 3, file) for name in ("cls_token", "pos_embed"))
    if token.shape != positions[:, :1].shape:
        raise ValueError(
            f"{file.path}: cls_token is {tuple(token.shape)} and pos_embed {tuple(positions.shape)}; `1 1 D` "
            "and `1 positions D` are needed. Download the file again."
        )
    folded["cls_token"] = token.float() + positions[:, :1].float()
    folded["pos_embed"] = positions[:, 1:]
    return folded


def _require_tensor(tensors: dict[str, Tensor], name: str, dims: int, file: WeightFile) -> Tensor:
    if name not in tensors or tensors[name].ndim != dims:
        seen = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
        raise ValueError(
            f"{file.path} is not DINOv2: {name} ({dims} dimensions) is {seen}. The file has for example "
            f"{join_names(sorted(file.tensors))}."
        )
    return tensors[name]


def _find_heads(width: int, file: WeightFile) -> int:
    text = file.metadata.get(HEADS_KEY, str(_HEADS.get(width, "")))
    if not text:
        raise ValueError(
            f"{file.path} is a DINOv2 of width {width}, which was never published (known: {list(_HEADS)}), "
            f"and does not say how many attention heads it has. Write {HEADS_KEY!r} into its metadata."
        )
    heads = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0
    if not heads or width % heads:
        raise ValueError(
            f"{file.path} says it has {text[:20]!r} attention heads; width {width} must divide by it."
        )
    return heads


def _check_sizes(config: DinoV2Config, file: WeightFile) -> None:
    """Reject implausible sizes before the model is built."""
    limits = {
        "width": _WIDEST,
        "depth": _MOST_BLOCKS,
        "hidden": 8 * config.width,
        "grid": _LARGEST_GRID,
        "registers": _MOST_REGISTERS,
    }
    for name, most in limits.items():
        least = 0 if name == "registers" else 1
        if not least <= getattr(config, name) <= most:
            raise ValueError(
                f"{file.path}: its {name} is {getattr(config, name)}; a DINOv2 has {least} to {most}."
            )
