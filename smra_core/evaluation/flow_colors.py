"""Optical flow as a picture: the hue is the direction, the saturation is the speed, white stands still.

The colors are those of the Middlebury benchmark (Baker et al. 2011), known from the RAFT papers and drawn by
torchvision: right is red, down yellow, left light blue, up violet.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .contact_sheet import SMALLEST_SIDE, SheetRow, choose_indices, draw_sheet, save_png, to_sheet_picture

LEAST_SPEED = 0.5
"""Lowest speed, in pixels per frame, that full color may stand for: a clip that hardly moves stays pale."""
FASTEST_QUANTILE = 0.99
"""Quantile of the speeds that gets full color: a few wild pixels would make the rest white."""
_FULL_COLOR = 1 - 1e-6
"""Length of the fastest flow given to torchvision. At exactly 1, rounding could make a channel negative, and
in 8 bits that would be its brightest value.
"""


def measure_fastest(flows: Sequence[Tensor]) -> float:
    """Return the speed, in pixels per frame, that gets full color in pictures of these flows `P 2 H W`.

    It is the 0.99 quantile of all finite speeds, and at least LEAST_SPEED.
    """
    speeds = torch.cat([flow.float().norm(dim=1).flatten() for flow in flows])
    speeds = speeds[speeds.isfinite()].sort().values
    if not len(speeds):
        return LEAST_SPEED
    return max(LEAST_SPEED, speeds[int(FASTEST_QUANTILE * (len(speeds) - 1))].item())


def color_flow(flow: Tensor, fastest: float) -> Tensor:
    """Return the colors `3 H W` in [0, 1] of a flow `2 H W` in pixels (dx, dy).

    `fastest` is the speed, in pixels, of full color. Faster flow is clipped. Flow that is not finite is
    black.
    """
    from torchvision.utils import flow_to_image  # here, as it takes a second to import

    finite = flow.isfinite().all(0)
    scaled = torch.where(finite, flow.float(), 0.0) / fastest
    scaled = _FULL_COLOR * scaled / scaled.norm(dim=0).clamp_min(1)
    # torchvision takes the fastest pixel of each call as its scale: one in an extra row is always the same.
    with_scale = F.pad(scaled, (0, 0, 0, 1))
    with_scale[0, -1, 0] = 1
    return flow_to_image(with_scale)[:, :-1].float() / 255 * finite


def draw_color_wheel(side: int) -> Tensor:
    """Return the legend `3 side side` in [0, 1]: a disc on white.

    Every point of the disc has the color of the flow from the center to it.
    """
    axis = torch.linspace(-1, 1, side)
    flow = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    inside = flow.norm(dim=0) <= 1
    return torch.where(inside, color_flow(flow, 1.0), 1.0)


def write_flow_sheet(
    rows: Sequence[tuple[str, Tensor, Tensor]],
    path: str | Path,
    pairs: Sequence[int] | int = 3,
    caption: str = "",
) -> None:
    """Write a PNG of clips, one in each row: frame t beside the flow from it to frame t+1.

    The last row shows the color wheel. Each other row is (label, clip `F 3 H W` in [0, 1], flow `F-1 2 H W`
    in pixels). `pairs` are the t to show, or their number. All rows share one scale, so that a slower clip is
    paler. Raise ValueError for no rows, or for a pair that a clip lacks.
    """
    if not rows:
        raise ValueError("A flow sheet needs at least one row (label, clip, flow), got none.")
    indices = choose_indices(min(len(flow) for _, _, flow in rows), pairs)
    fastest = measure_fastest([flow[indices] for _, _, flow in rows])
    sheet_rows = [
        SheetRow(label, [image for t in indices for image in _draw_pair(clip[t], flow[t], fastest)])
        for label, clip, flow in rows
    ]
    heads = [head for t in indices for head in (f"frame {t}", f"flow {t} to {t + 1}")]
    legend = _draw_legend(fastest, columns=len(heads))
    save_png(draw_sheet([*sheet_rows, legend], heads, caption), path)


def _draw_pair(frame: Tensor, flow: Tensor, fastest: float) -> tuple[Image.Image, Image.Image]:
    return to_sheet_picture(frame), to_sheet_picture(color_flow(flow, fastest))


def _draw_legend(fastest: float, columns: int) -> SheetRow:
    blank = [Image.new("RGB", (1, 1), "white")] * (columns - 1)
    note = f"Hue: direction, as seen from the center. Full color: {fastest:.1f} px per frame. White: still."
    return SheetRow(f"Colors\n{note}", [to_sheet_picture(draw_color_wheel(SMALLEST_SIDE)), *blank])
