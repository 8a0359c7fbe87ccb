"""What the metrics need of a network that turns pictures into embeddings, and DINOv2 as such a one."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..encoders.dino import Dino, crop_center, load_dino
from ..encoders.dinov2 import DinoV2, load_dinov2
from ..encoders.dinov2_files import is_dinov2
from ..storage.weight_file import read_shapes
from ..wan.spec import LATENTS_21
from .metrics import average_patches

SIDE = 224
"""Side in pixels of the central square that is compared, as in DreamBooth."""
PICTURES_PER_BATCH = 8


class PictureEncoder(Protocol):
    """A network that turns pictures into embeddings."""

    name: str

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return embeddings `B D` on the CPU of pictures `B 3 H W` in [0, 1]."""
        ...


class NoTextEmbedding(ValueError):
    """Error of an encoder that cannot bring texts into the space of its pictures; its text is the reason."""


class TextPictureEncoder(PictureEncoder, Protocol):
    """A network whose embeddings of pictures and texts are in one space, such as CLIP."""

    def embed_text(self, text: str) -> Tensor:
        """Return the embedding `D` on the CPU of a text; raise NoTextEmbedding where there is none."""
        ...


class DinoV2Pictures:
    """DINOv2 as a picture encoder: the mean of the patch features of the central square.

    Pictures whose shorter side is below 224 px are not enlarged, but cropped to whole tokens of 16 px.
    """

    def __init__(self, net: DinoV2, name: str):
        self.net, self.name = net, name

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return embeddings `B D` on the CPU of pictures `B 3 H W` in [0, 1].

        Raises ValueError for pictures below 16 px.
        """
        token = LATENTS_21.token_pixels
        short = min(pictures.shape[-2:])
        if short < token:
            raise ValueError(f"DINOv2 compares pictures of at least {token} px, got {short} px.")
        squares = crop_center(pictures, min(SIDE, short // token * token))
        device = next(self.net.parameters()).device
        batches = squares.split(PICTURES_PER_BATCH)
        features = [average_patches(self.net.extract_patch_features(one.to(device))).cpu() for one in batches]
        return torch.cat(features)


def load_picture_encoder(path: Path, device: str | torch.device = "cpu") -> Dino | DinoV2Pictures:
    """Load DINO's first version or DINOv2, whichever the file or the folder of transformers holds.

    Raises ValueError for anything else.
    """
    if path.is_file() and is_dinov2(read_shapes(path)):
        net = load_dinov2(path, device)
        return DinoV2Pictures(net, f"DINOv2 of width {net.vit.embed_dim}")
    return load_dino(path, device)
