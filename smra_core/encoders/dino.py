"""DINO, the first version: one embedding per picture, with which the paper measures DINO-I.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021. The embedding is the class
token after the last norm, of pictures prepared as in DreamBooth's DINO-I: the shorter side to 256 px, then
the central 224x224.
"""

import json
import re
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..storage.weight_check import fill_module
from ..storage.weight_file import WeightFile, read_weight_file
from .dinov2 import IMAGENET_MEAN, IMAGENET_STD
from .packages import import_package

PICTURES_PER_BATCH = 8
"""Number of pictures that are embedded at the same time."""
_HEAD_CHANNELS = 64
"""Channels of an attention head in every published DINO; no shape tells it."""
_RESIZED = 256 / 224
"""Shorter side after resizing, as a share of the crop."""
_SIZES = {384: "S", 768: "B"}
_PATCH_WEIGHT = "patch_embed.proj.weight"
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_LARGEST = {"width": 4096, "depth": 64, "grid": 128}


class Dino:
    """Frozen vision transformer of DINO's first version."""

    def __init__(self, vit: nn.Module, side: int, name: str):
        self.vit, self.side, self.name = vit.float().requires_grad_(False).eval(), side, name

    def to(self, device: str | torch.device) -> "Dino":
        """Move the net to a device and return it."""
        self.vit.to(device)
        return self

    @torch.no_grad()
    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return class tokens `B D` on the CPU of pictures `B 3 H W` in [0, 1]."""
        device = next(self.vit.parameters()).device
        batches = crop_center(pictures, self.side, _RESIZED).split(PICTURES_PER_BATCH)
        mean, std = (pictures.new_tensor(rgb)[:, None, None] for rgb in (IMAGENET_MEAN, IMAGENET_STD))
        return torch.cat([self._get_class_token(((one - mean) / std).to(device)).cpu() for one in batches])

    def _get_class_token(self, prepared: Tensor) -> Tensor:
        if hasattr(self.vit, "forward_features"):
            return self.vit.forward_features(prepared)[:, 0]
        return self.vit(pixel_values=prepared).last_hidden_state[:, 0]


def crop_center(pictures: Tensor, side: int, resized: float = 1.0) -> Tensor:
    """Resize pictures `B 3 H W` so that the shorter side has `resized * side` pixels, and return the central
    `B 3 side side` in [0, 1].
    """
    height, width = pictures.shape[-2:]
    factor = round(side * resized) / min(height, width)
    size = [max(side, round(height * factor)), max(side, round(width * factor))]
    scaled = F.interpolate(pictures.float(), size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return scaled[..., top : top + side, left : left + side].clamp(0, 1)


def load_dino(path: str | Path, device: str | torch.device = "cpu") -> Dino:
    """Load DINO from timm's or the authors' file, or from a folder of transformers (facebook/dino-vits16).

    Nothing is downloaded. Raises ValueError when it is not readable or not a DINO with patches of any size.
    """
    path = Path(path)
    return (_load_folder(path) if path.is_dir() else _load_file(path)).to(device)


def _load_folder(folder: Path) -> Dino:
    transformers = import_package("transformers", "DINO")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no readable config.json. Give a folder with all files of facebook/dino-vits16."
        ) from error
    if config.get("model_type") != "vit" or not any((folder / name).is_file() for name in _FOLDER_FILES):
        raise ValueError(
            f"{folder} is not DINO: its config.json says {config.get('model_type')!r}, and 'vit' "
            "with weights beside it is needed. Give the folder of facebook/dino-vits16."
        )
    vit = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    sizes = vit.config
    return Dino(vit, sizes.image_size, _describe_net(sizes.hidden_size, sizes.patch_size))


def _load_file(path: Path) -> Dino:
    timm = import_package("timm.models.vision_transformer", "DINO")
    file = read_weight_file(path)
    width, patch, grid, depth = _find_sizes(file)
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
        vit = timm.VisionTransformer(
            img_size=patch * grid,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=max(1, width // _HEAD_CHANNELS),
            num_classes=0,
            weight_init="skip",
        )
    fill_module(vit, file.tensors, str(path))
    return Dino(vit, patch * grid, _describe_net(width, patch))


def _find_sizes(file: WeightFile) -> tuple[int, int, int, int]:
    """Return width, patch, patches along a side and number of blocks of a file in timm's names."""
    patch_weight, position = (file.tensors.get(name) for name in (_PATCH_WEIGHT, "pos_embed"))
    if patch_weight is None or position is None or patch_weight.ndim != 4 or position.ndim != 3:
        raise ValueError(
            f"{file.path} is not DINO: it lacks {_PATCH_WEIGHT} or pos_embed. Give "
            "dino_deitsmall16_pretrain.pth of facebookresearch/dino, timm/vit_small_patch16_224.dino, or the "
            "folder of facebook/dino-vits16."
        )
    width, _, _, patch = patch_weight.shape
    grid = isqrt(position.shape[1] - 1)
    depth = len({found[1] for name in file.tensors if (found := re.match(r"blocks\.(\d+)\.", name))})
    for name, value in (("width", width), ("depth", depth), ("grid", grid)):
        if not 1 <= value <= _LARGEST[name]:
            raise ValueError(f"{file.path}: its {name} is {value}; a DINO has 1 to {_LARGEST[name]}.")
    return width, patch, grid, depth


def _describe_net(width: int, patch: int) -> str:
    return f"DINO ViT-{_SIZES.get(width, width)}/{patch}"
