"""DINOv2: what an image looks like, patch by patch; the teacher of the subject LoRA.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023. One patch of 14 px stands
for 16 px of the picture, so that patches and WAN's tokens (16 px each) are the same grid.
"""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..storage.weight_check import check_names_and_shapes, collect_shapes, fill_module
from ..storage.weight_file import read_weight_file
from .dinov2_files import PATCH, DinoV2Config, config_of, expected_shapes, with_timm_names

log = logging.getLogger("smrabooth")

TOKEN = 16
"""Pixels along a side of what one WAN token sees."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_TOLERANCE = 0.05
"""Resizing may overshoot [0, 1] a little; a picture in [-1, 1] or 0..255 goes well beyond it."""


class DinoV2(nn.Module):
    """A frozen vision transformer, always in eval mode, without gradients."""

    def __init__(self, config: DinoV2Config):
        super().__init__()
        self.vit = _vision_transformer(config)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DinoV2":
        """As for any module, but a teacher stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def extract_patch_features(self, pictures: Tensor) -> Tensor:
        """Features after the last norm, `B (H/16 W/16) D` float32 in y,x order, of `B 3 H W` in [0, 1].

        The class and register tokens are left out. Position embeddings are resampled bicubically with
        antialiasing, as REPA does and with it the release of SMRABooth; the hub's own code differs from that
        by cosine 0.99997. ValueError unless H and W are multiples of 16 and the values fit.
        """
        _check_pictures(pictures)
        tokens = self.vit.forward_features(prepare_pictures(pictures).to(self.vit.patch_embed.proj.weight))
        return tokens[:, self.vit.num_prefix_tokens :].float()


def load_dinov2(path: str | Path, device: str | torch.device = "cpu") -> DinoV2:
    """The net in a file of timm, of the authors or of transformers, on a device, in `dtype_on` it.

    Its size is found from the shapes. ValueError if the file is not readable (see `read_weight_file`), is not
    DINOv2, or if any weight is missing, unknown, misshapen or not finite.
    """
    file = read_weight_file(path)
    tensors = with_timm_names(file)
    config = config_of(tensors, file)
    # Before the net is built: a small file must not ask for a large one.
    check_names_and_shapes(expected_shapes(config), collect_shapes(tensors), str(file.path))
    # Not built on "meta": timm up to at least 1.0.20 reads numbers out of tensors while building. The initial
    # weights are overwritten, so drawing them must not advance anyone's random numbers.
    with torch.random.fork_rng(devices=[]):
        net = DinoV2(config)
    net.to(dtype_on(device, config))
    fill_module(net.vit, tensors, str(file.path))
    log.info("DINOv2: width %d, %d blocks from %s", config.width, config.depth, file.path.name)
    return net.to(device)


def dtype_on(device: str | torch.device, config: DinoV2Config) -> torch.dtype:
    """float32, but bfloat16 for the giant on an accelerator: 2.3 GB there instead of 4.5.

    The giant is the only one whose feed-forward nets are gated. CPUs are slow in bfloat16.
    """
    return torch.bfloat16 if config.gated and torch.device(device).type != "cpu" else torch.float32


def _vision_transformer(config: DinoV2Config) -> VisionTransformer:
    kind = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if config.gated else {}
    return VisionTransformer(
        img_size=PATCH * config.grid,
        patch_size=PATCH,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=(config.hidden + 0.5) / config.width,  # half a unit: timm rounds the product down
        init_values=1.0,  # any value: it makes the layer scales exist
        reg_tokens=config.registers,
        no_embed_class=config.registers > 0,
        dynamic_img_size=True,
        num_classes=0,
        weight_init="skip",
        **kind,
    )


def prepare_pictures(pictures: Tensor) -> Tensor:
    """Pictures `B 3 H W` in [0, 1] as the net wants them: ImageNet's statistics, 14 px for every 16."""
    sides = [PATCH * (side // TOKEN) for side in pictures.shape[-2:]]
    resized = F.interpolate(pictures.float(), sides, mode="bicubic", antialias=True, align_corners=False)
    mean, std = (resized.new_tensor(rgb)[:, None, None] for rgb in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized - mean) / std


def _check_pictures(pictures: Tensor) -> None:
    if pictures.ndim != 4 or pictures.shape[1] != 3 or any(side % TOKEN for side in pictures.shape[-2:]):
        raise ValueError(
            f"DINOv2 compares pictures `B 3 H W` whose sides are multiples of {TOKEN} px, got "
            f"{tuple(pictures.shape)}. Crop or resize them first."
        )
    low, high = pictures.min().item(), pictures.max().item()
    if not (-_TOLERANCE <= low and high <= 1 + _TOLERANCE):
        raise ValueError(
            f"DINOv2 needs pictures in [0, 1]; these reach from {low:.3g} to {high:.3g}. Rescale them first."
        )
