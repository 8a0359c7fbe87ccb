"""The loss curves that a training node shows: a panel for each named loss, and below it by band of noise."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...smra_core.data.crop import to_pixels
from ...smra_core.evaluation.loss_plot import join_panels, make_loss_rows
from ..host.images import as_image

PANEL_SIZE = (420, 240)
"""(width, height) of a panel in pixels; the host shrinks the picture to the node's width."""


def draw_loss_image(columns: Mapping[str, Sequence[float]]) -> Tensor:
    """Return the curves as an IMAGE `1 H W 3` in [0, 1], from the columns of a run's losses.csv.

    The first row shows each loss, pale every step and strong the smoothed line, whose last value stands in
    the title; the second row shows it smoothed by band of noise.
    """
    rows = make_loss_rows(columns, PANEL_SIZE)
    return as_image(torch.stack([to_pixels(join_panels(rows))]))
