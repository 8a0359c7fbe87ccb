"""Optical flow as a picture: the hue is the direction, the saturation the speed, white stands still.

The idea of the Middlebury color code (Baker et al. 2011) on a plain HSV wheel: right is red, and hues go
round clockwise on the screen, so down is yellow-green, left cyan and up violet.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .contact_sheet import SMALLEST_SIDE, SheetRow, chosen, picture, save_png, sheet

LEAST_SPEED = 0.5
"""Pixels per frame: nothing is drawn as if it were fast when all is slower than this."""
FASTEST = 0.99
"""Quantile of the speeds that gets full color: a few wild pixels would make the rest white."""


def flow_to_rgb(flow: Tensor, fastest: float | None = None) -> Tensor:
    """Colors `3 H W` in [0, 1] of a flow `2 H W` in pixels (dx, dy).

    `fastest` is the speed, in pixels, of full color; by default the fastest in this flow. Faster is clipped,
    what is not finite comes out black.
    """
    finite = flow.isfinite().all(0)
    dx, dy = torch.where(finite, flow.float(), 0.0)
    speed = torch.hypot(dx, dy)
    top = speed.max() if fastest is None else torch.tensor(float(fastest))
    saturation = (speed / top.clamp_min(torch.finfo(torch.float32).tiny)).clamp(0, 1)
    hue = torch.atan2(dy, dx) / (2 * math.pi)
    return (1 - saturation * (1 - _pure(hue))) * finite


def color_wheel(side: int) -> Tensor:
    """Legend `3 side side`: a disc whose every point has the color of the flow from the center to it."""
    axis = torch.linspace(-1, 1, side)
    flow = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    inside = flow.norm(dim=0) <= 1
    return torch.where(inside, flow_to_rgb(flow, 1.0), 1.0)


def flow_sheet(
    rows: Sequence[tuple[str, Tensor, Tensor]],
    path: str | Path,
    pairs: Sequence[int] | int = 3,
    caption: str = "",
) -> None:
    """Write a PNG of clips, one a row: frame t beside its flow to frame t+1, and the color wheel as a last
    row.

    A row is (label, clip `F 3 H W` in [0, 1], flow `F-1 2 H W` in pixels). `pairs` are the t to show, or how
    many. All rows share one scale, so that a slower clip is paler. ValueError for no rows, or a pair that a
    clip lacks.
    """
    if not rows:
        raise ValueError("A flow picture needs at least one row (label, clip, flow), got none.")
    shown = chosen(min(len(flow) for _, _, flow in rows), pairs)
    fastest = _fastest([flow[shown] for _, _, flow in rows])
    pictures = [
        SheetRow(label, [image for t in shown for image in _pair(clip[t], flow[t], fastest)])
        for label, clip, flow in rows
    ]
    heads = [head for t in shown for head in (f"frame {t}", f"flow {t} to {t + 1}")]
    save_png(sheet([*pictures, _legend(fastest, pictures[0])], heads, caption), path)


def _pure(hue: Tensor) -> Tensor:
    """Fully saturated color `3 ...` of a hue in turns: 0 red, 1/3 green, 2/3 blue."""
    away = torch.stack([(hue - at + 0.5) % 1 - 0.5 for at in (0, 1 / 3, 2 / 3)]).abs()
    return (2 - 6 * away).clamp(0, 1)


def _fastest(flows: Sequence[Tensor]) -> float:
    speeds = torch.cat([flow.float().norm(dim=1).flatten() for flow in flows])
    speeds = speeds[speeds.isfinite()].sort().values
    return max(LEAST_SPEED, speeds[int(FASTEST * (len(speeds) - 1))].item()) if len(speeds) else LEAST_SPEED


def _pair(frame: Tensor, flow: Tensor, fastest: float) -> tuple[Image.Image, Image.Image]:
    return picture(frame), picture(flow_to_rgb(flow, fastest))


def _legend(fastest: float, like: SheetRow) -> SheetRow:
    blank = [Image.new("RGB", (1, 1), "white")] * (len(like.pictures) - 1)
    note = f"Hue: direction, as seen from the center. Full color: {fastest:.1f} px per frame. White: still."
    return SheetRow(f"Colors\n{note}", [picture(color_wheel(SMALLEST_SIDE)), *blank])
