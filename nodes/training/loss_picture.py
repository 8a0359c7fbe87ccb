"""The loss curves that a training node shows: a panel for each named loss, side by side."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...smra_core.data.crop import to_pixels
from ...smra_core.evaluation.loss_plot import draw_loss_panel, join_panels, smooth
from ..host.images import as_image

PANEL_SIZE = (420, 240)
"""(width, height) of a panel in pixels; the host shrinks the picture to the node's width."""


def draw_loss_image(losses: Mapping[str, Sequence[float]]) -> Tensor:
    """Return the curves as an IMAGE `1 H W 3` in [0, 1], from each loss's values of steps 1, 2, ...

    The raw values are drawn pale behind the smoothed line, whose last value stands in the title.
    """
    panels = [
        draw_loss_panel(f"{name}: {smooth(values)[-1]:.4g}", range(1, len(values) + 1), values, PANEL_SIZE)
        for name, values in losses.items()
        if len(values)
    ]
    return as_image(torch.stack([to_pixels(join_panels([panels]))]))
