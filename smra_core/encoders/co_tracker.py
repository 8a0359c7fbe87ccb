"""CoTracker 3: points that are followed through a clip, with which the paper measures motion fidelity.

Karaev et al., "CoTracker3", 2024. The network is that of the authors' package `cotracker`, whose license is
for noncommercial use; the weights are those of its offline model.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..storage.weight_check import fill_module
from ..storage.weight_file import read_weight_file
from .packages import import_package

WINDOW = 60
"""Frames that the published offline model was trained on; it takes longer clips, too."""


class CoTracker:
    """Frozen CoTracker 3, offline: it sees the whole clip at once."""

    name = "CoTracker3"

    def __init__(self, path: Path, device: str | torch.device = "cpu"):
        """Load scaled_offline.pth or baseline_offline.pth of facebook/cotracker3.

        Raises ImportError without the package, and ValueError for other files.
        """
        predictor = _import_predictor()
        # Without a path, or the package itself would read the file.
        self.predictor = predictor.CoTrackerPredictor(checkpoint=None, offline=True, window_len=WINDOW)
        fill_module(self.predictor.model, read_weight_file(path).tensors, str(path))
        self.predictor.to(device).requires_grad_(False)

    @torch.no_grad()
    def follow(self, clip: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Follow points `N 2`, (x, y) in pixels of frame 0, through a clip `F 3 H W` in [0, 1].

        Returns positions `N F 2` in pixels and visibility `N F` bool, on the CPU. (0, 0) is the center of the
        top left pixel.
        """
        device = next(self.predictor.parameters()).device
        queries = torch.cat([points.new_zeros(len(points), 1), points], 1)[None]
        tracks, visible = self.predictor(255 * clip[None].to(device), queries=queries.to(device))
        return tracks[0].transpose(0, 1).cpu(), visible[0].T.bool().cpu()


def _import_predictor():
    try:
        return import_package("cotracker.predictor", "CoTracker")
    except ImportError as error:
        if error.name != "cotracker":
            raise
        raise ImportError(
            "CoTracker's points need the authors' package, for noncommercial use: "
            "python -m pip install git+https://github.com/facebookresearch/co-tracker. Without "
            "--co-tracker motion fidelity is measured with SEA-RAFT's flow.",
            name=error.name,
        ) from error
