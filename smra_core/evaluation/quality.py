"""Quality of single frames without any reference: LAION's aesthetic score, and MUSIQ's imaging quality.

As in VBench (Huang et al., 2024), from which the paper takes both: LAION's linear layer on the embeddings of
CLIP ViT-L/14, and MUSIQ as trained on SPAQ, both as shares of their scale.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.packages import import_package
from ..storage.weight_check import fill_module
from ..storage.weight_file import read_weight_file

AESTHETIC_SCALE, IMAGING_SCALE = 10, 100
"""Highest scores of the two networks; the metrics are divided by them."""
LONGER_SIDE = 512
"""Largest longer side in pixels that MUSIQ sees; larger frames are made smaller."""


def load_aesthetic_layer(path: Path) -> nn.Linear:
    """Load LAION's linear layer (sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor).

    Raises ValueError for any other file.
    """
    file = read_weight_file(path)
    weight = file.tensors.get("weight")
    if weight is None or weight.ndim != 2 or len(weight) != 1:
        raise ValueError(
            f"{path} is not LAION's aesthetic layer: it has no weight of one row. Give "
            "sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor."
        )
    layer = nn.Linear(weight.shape[1], 1)
    fill_module(layer, file.tensors, str(path))
    return layer.requires_grad_(False)


def measure_aesthetic(layer: nn.Linear, embeddings: Tensor) -> float:
    """Return the mean aesthetic score, about 0 to 1, of CLIP's embeddings `F D` of the frames."""
    units = F.normalize(embeddings.cpu().float(), dim=-1)
    return layer(units).mean().item() / AESTHETIC_SCALE


class Musiq:
    """MUSIQ (Ke et al., "Multi-scale Image Quality Transformer", 2021) as trained on SPAQ, by pyiqa."""

    def __init__(self, path: Path, device: str | torch.device = "cpu"):
        """Load musiq_spaq_ckpt-358bb6af.pth. Raises ImportError without pyiqa, ValueError for other files."""
        pyiqa = _import_pyiqa()
        # Without the download; the file is read by our own reader, which runs no code in it.
        self.metric = pyiqa.create_metric("musiq-spaq", device=torch.device(device), pretrained=False)
        fill_module(self.metric.net, read_weight_file(path).tensors, str(path))

    @torch.no_grad()
    def measure_imaging(self, frames: Tensor) -> float:
        """Return the mean imaging quality, in [0, 1], of frames `F 3 H W` in [0, 1]."""
        scores = [self.metric(shrink(frame[None])).mean().item() for frame in frames]
        return sum(scores) / len(scores) / IMAGING_SCALE


def shrink(frames: Tensor) -> Tensor:
    """Return frames `F 3 H W` whose longer side has at most 512 px, as VBench shows them to MUSIQ."""
    factor = LONGER_SIDE / max(frames.shape[-2:])
    if factor >= 1:
        return frames
    size = [max(1, int(side * factor)) for side in frames.shape[-2:]]
    return F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _import_pyiqa():
    try:
        return import_package("pyiqa", "MUSIQ")
    except ImportError as error:
        raise ImportError(
            "Imaging quality needs the package pyiqa, which is not in requirements.txt, as its license is "
            'for noncommercial use: python -m pip install "smrabooth[metrics]", best in its own environment.',
            name=error.name,
        ) from error
