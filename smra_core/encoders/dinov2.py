"""DINOv2: features of each patch of a picture, with which the subject LoRA is aligned.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023. The picture is resized so
that one patch of 14 px shows what one of WAN's tokens covers (16 px, or 32 px in TI2V-5B); patches and tokens
are then the same grid.

timm is imported only where a net is built, so that the pack's nodes load without it.
"""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..storage.weight_check import check_names_and_shapes, collect_shapes, fill_module
from ..storage.weight_file import read_weight_file
from ..wan.spec import LATENTS_21
from .dinov2_files import PATCH, DinoV2Config, find_config, list_expected_shapes, with_timm_names
from .packages import import_package

log = logging.getLogger("smrabooth")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_TOKEN_PIXELS = LATENTS_21.token_pixels
_TOLERANCE = 0.05
"""Tolerance of the range [0, 1], which resizing may overshoot; pictures in [-1, 1] or 0..255 exceed it."""


class DinoV2(nn.Module):
    """Frozen vision transformer, always in eval mode, without gradients."""

    def __init__(self, config: DinoV2Config):
        super().__init__()
        self.vit = _build_vision_transformer(config)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DinoV2":
        """Stay in eval mode whatever `mode` says, because the net is frozen."""
        return super().train(False)

    @torch.no_grad()
    def extract_patch_features(self, pictures: Tensor, token_pixels: int = _TOKEN_PIXELS) -> Tensor:
        """Return the features after the last norm, `B (H/p W/p) D` float32 in y,x order, of pictures
        `B 3 H W` in [0, 1], where p is `token_pixels`: the width and height that a patch shows.

        The class and register tokens are left out. Position embeddings are resampled bicubically with
        antialiasing, like in REPA and thus in the release of SMRABooth; the features of the hub's own code
        have cosine 0.99997 to these. ValueError unless H and W are multiples of p and the values in [0, 1].
        """
        _check_pictures(pictures, token_pixels)
        prepared = prepare_pictures(pictures, token_pixels).to(self.vit.patch_embed.proj.weight)
        tokens = self.vit.forward_features(prepared)
        return tokens[:, self.vit.num_prefix_tokens :].float()


def load_dinov2(path: str | Path, device: str | torch.device = "cpu") -> DinoV2:
    """Load the net from a file of timm, of the authors or of transformers onto a device.

    Its sizes are found from the shapes, its dtype by `choose_dtype`. ValueError if the file is not readable
    (see `read_weight_file`), is not DINOv2, or if any weight is missing, unknown, misshapen or not finite;
    ImportError if timm is not installed.
    """
    file = read_weight_file(path)
    tensors = with_timm_names(file)
    config = find_config(tensors, file)
    # Checked before the net is built, so that a small file cannot make us allocate a large net.
    check_names_and_shapes(list_expected_shapes(config), collect_shapes(tensors), str(file.path))
    # Not built on "meta", because timm up to at least 1.0.20 reads numbers out of tensors while building. The
    # initial weights are overwritten, so drawing them must not advance the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        net = DinoV2(config)
    net.to(choose_dtype(device, config))
    fill_module(net.vit, tensors, str(file.path))
    log.info("DINOv2: width %d, %d blocks from %s", config.width, config.depth, file.path.name)
    return net.to(device)


def choose_dtype(device: str | torch.device, config: DinoV2Config) -> torch.dtype:
    """Return float32, or bfloat16 for ViT-g on an accelerator, where it then takes 2.3 GB instead of 4.5.

    ViT-g is the only size whose feed-forward nets are gated. CPUs are slow in bfloat16.
    """
    return torch.bfloat16 if config.gated and torch.device(device).type != "cpu" else torch.float32


def _build_vision_transformer(config: DinoV2Config) -> nn.Module:
    timm = import_package("timm.models.vision_transformer", "DINOv2")
    kind = {}
    if config.gated:
        mlp = import_package("timm.layers.mlp", "DINOv2")
        kind = {"mlp_layer": mlp.SwiGLUPacked, "act_layer": nn.SiLU}
    return timm.VisionTransformer(
        img_size=PATCH * config.grid,
        patch_size=PATCH,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=(config.hidden + 0.5) / config.width,  # plus half a unit, as timm rounds the product down
        init_values=1.0,  # any value will do; without one, timm makes no layer scales
        reg_tokens=config.registers,
        no_embed_class=config.registers > 0,
        dynamic_img_size=True,
        num_classes=0,
        weight_init="skip",
        **kind,
    )


def prepare_pictures(pictures: Tensor, token_pixels: int = _TOKEN_PIXELS) -> Tensor:
    """Resize pictures `B 3 H W` in [0, 1] to 14 px for every `token_pixels`, and normalize by ImageNet's
    statistics.
    """
    sides = [PATCH * (side // token_pixels) for side in pictures.shape[-2:]]
    resized = F.interpolate(pictures.float(), sides, mode="bicubic", antialias=True, align_corners=False)
    mean, std = (resized.new_tensor(rgb)[:, None, None] for rgb in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized - mean) / std


def _check_pictures(pictures: Tensor, token_pixels: int) -> None:
    sides = pictures.shape[-2:]
    if pictures.ndim != 4 or pictures.shape[1] != 3 or any(side % token_pixels for side in sides):
        raise ValueError(
            f"DINOv2 compares pictures `B 3 H W` whose sides are multiples of {token_pixels} px, got "
            f"{tuple(pictures.shape)}. Crop or resize them first."
        )
    low, high = pictures.min().item(), pictures.max().item()
    if not (-_TOLERANCE <= low and high <= 1 + _TOLERANCE):
        raise ValueError(
            f"DINOv2 needs pictures with values in [0, 1]; these reach from {low:.3g} to {high:.3g}. Rescale "
            "them first."
        )
