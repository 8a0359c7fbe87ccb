"""Figures for a video: does it show the subject, follow the prompt, hold together, move as the clip does.

Pure functions of embeddings, optical flow and point tracks; no model is downloaded. Cosines lie in [-1, 1],
motion fidelity in [-100, 100]. The motion metrics follow optical flow, the paper's follow CoTracker's points:
compare them among your own runs, never with the paper's 62.89.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

STILL = 0.1
"""Pixels per step below which a point counts as not moving: its direction would be noise."""
LEAST_FLOW = 1e-3
"""Pixels; a reference that moves less than this on average is taken to move this much."""

METRIC_HELP = {
    "CLIP-I": "Likeness of the frames to the subject's pictures, by CLIP's image features. 1 is equal.",
    "DINO-I": "Likeness of the frames to the subject's pictures, by the mean of DINOv2's patch features. "
    "1 is equal. The paper's DINO-I uses DINO's first version, which gives other numbers.",
    "CLIP-T": "How well the frames fit the prompt, by CLIP. Higher fits better; about 0.3 is usual.",
    "Temporal Consistency": "Likeness of each frame to the next. A still picture scores 1, so read it with "
    "the motion.",
    "Motion Fidelity (flow)": "Do points move in the directions of the reference clip? 100: always; "
    "0: unrelated, or nothing moves; -100: opposite. By optical flow, so the paper's number is another.",
    "Motion Fidelity x (flow)": "The same for left and right alone.",
    "Motion Fidelity y (flow)": "The same for up and down alone. One axis can hide the other's faults.",
    "Motion Amount": "Mean speed, as a share of the reference clip's. 1 moves as much, 0 stands still.",
}
"""The name that each figure goes by, and what it says in plain words."""


class AxisFidelity(NamedTuple):
    """Motion fidelity of left-right and of up-down movement, each in [-100, 100]."""

    x: float
    y: float


class Tracks(NamedTuple):
    """Points followed through a clip."""

    positions: Tensor
    """`N F 2`, (x, y) in pixels; (0, 0) is the center of the top left pixel."""
    visible: Tensor
    """`N F`, bool; a point once lost stays lost."""


def mean_pairwise_cosine(frames: Tensor, references: Tensor) -> float:
    """CLIP-I, DINO-I: mean cosine of all pairs of frames `F D` and references `R D` (DreamBooth)."""
    return (_directions(frames) @ _directions(references).T).mean().item()


def temporal_consistency(frames: Tensor) -> float:
    """Mean cosine of frames `F D` that follow each other. ValueError for fewer than two."""
    if len(frames) < 2:
        raise ValueError(
            f"Temporal consistency compares neighbors; got {len(frames)} frame(s), give at least 2."
        )
    units = _directions(frames)
    return (units[1:] * units[:-1]).sum(-1).mean().item()


def mean_patch(patches: Tensor) -> Tensor:
    """One embedding per frame from a teacher's patch features: `F N D` to `F D`."""
    return patches.float().mean(1)


def motion_amount(flow: Tensor, reference: Tensor) -> float:
    """Mean length of the flow `F-1 2 H W` over the reference's: 0 is a still video, 1 moves as much."""
    return (_mean_length(flow) / _mean_length(reference).clamp_min(LEAST_FLOW)).item()


def chain_tracks(flow: Tensor, grid: int, backward: Tensor | None = None) -> Tracks:
    """Follow `grid` x `grid` points, even over frame 0, along the flow: p[t+1] = p[t] + flow[t](p[t]).

    `flow` `F-1 2 H W` in pixels, read bilinearly. A point is lost where it leaves the frame; with the
    `backward` flow (frame t+1 to t, same shape) also where the way back misses the start by more than
    1 px + 5 % of both lengths: something covered it.
    """
    height, width = flow.shape[-2:]
    points = _even_points(grid, height, width).to(flow)
    positions, visible = [points], [torch.ones(len(points), dtype=torch.bool, device=flow.device)]
    for step in range(len(flow)):
        moved = points + _at(flow[step], points)
        kept = visible[-1] & _inside(moved, height, width)
        if backward is not None:
            kept = kept & _returns(moved - points, _at(backward[step], moved))
        points = moved
        positions.append(points)
        visible.append(kept)
    return Tracks(torch.stack(positions, 1), torch.stack(visible, 1))


def motion_fidelity(tracks_a: Tensor, visible_a: Tensor, tracks_b: Tensor, visible_b: Tensor) -> float:
    """Do two clips move alike? Mean over points of the best match in the other clip, both ways, [-100, 100].

    Tracks are `N F 2` and `M F 2` (any number of axes), visible `N F` and `M F`. Two points match by the mean
    dot product of their unit displacements over the steps in which both are visible (Yatim et al.,
    "Space-Time Diffusion Features"). Steps in which neither moves 0.1 px are dropped; points that hardly move
    at all are left out, else a still background decides; the best match is taken in both directions. A clip
    in which nothing moves scores 0. ValueError for clips of different lengths.
    """
    if tracks_a.shape[1] != tracks_b.shape[1]:
        raise ValueError(
            f"Motion fidelity compares clips of one length; got tracks of {tracks_a.shape[1]} and "
            f"{tracks_b.shape[1]} frames. Trim the longer clip."
        )
    a, b = _moving_steps(tracks_a, visible_a), _moving_steps(tracks_b, visible_b)
    similarity, shared = _similarities(a, b)
    return 50 * (_mean_best(similarity, shared, a) + _mean_best(similarity.T, shared.T, b))


def motion_fidelity_axes(
    tracks_a: Tensor, visible_a: Tensor, tracks_b: Tensor, visible_b: Tensor
) -> AxisFidelity:
    """Motion fidelity of each axis by itself; arguments as `motion_fidelity`.

    Over both axes the one that moves more hides the other: a straight walk then passes for a zigzag.
    """
    x, y = (
        motion_fidelity(tracks_a[..., axis : axis + 1], visible_a, tracks_b[..., axis : axis + 1], visible_b)
        for axis in (0, 1)
    )
    return AxisFidelity(x, y)


def _directions(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.double(), dim=-1)


def _mean_length(flow: Tensor) -> Tensor:
    return flow.norm(dim=1).mean()


def _even_points(grid: int, height: int, width: int) -> Tensor:
    """Centers of `grid` x `grid` equal cells, `N 2` as (x, y), row by row."""
    if grid < 1:
        raise ValueError(f"Tracking needs a grid of at least 1 point per side, got {grid}.")
    cell = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(cell * height - 0.5, cell * width - 0.5, indexing="ij")
    return rearrange([x, y], "xy i j -> (i j) xy")


def _at(flow: Tensor, points: Tensor) -> Tensor:
    """Bilinear values `N 2` of a flow `2 H W` at points `N 2`; outside the frame, those of its edge."""
    height, width = flow.shape[-2:]
    size = points.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    where = (2 * points / size - 1).reshape(1, -1, 1, 2)
    values = F.grid_sample(flow[None], where, padding_mode="border", align_corners=True)
    return rearrange(values, "1 xy n 1 -> n xy")


def _inside(points: Tensor, height: int, width: int) -> Tensor:
    x, y = points.unbind(-1)
    return (x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)


def _returns(forth: Tensor, back: Tensor) -> Tensor:
    return (forth + back).norm(dim=-1) <= 1 + 0.05 * (forth.norm(dim=-1) + back.norm(dim=-1))


class _Steps(NamedTuple):
    unit: Tensor
    """`N T axes`: displacement of length 1; 0 where still or not visible."""
    visible: Tensor
    """`N T`, 0 or 1: visible at both ends of the step."""
    still: Tensor
    """`N T`, 0 or 1: visible and below STILL."""


def _moving_steps(tracks: Tensor, visible: Tensor) -> _Steps:
    """Steps of the points that move STILL or more per visible step on average."""
    seen = (visible[:, 1:] & visible[:, :-1]).double()
    delta = tracks.double().diff(dim=1)
    length = delta.norm(dim=-1)
    moving = ((length * seen).sum(1) >= STILL * seen.sum(1)) & (seen.sum(1) > 0)
    still = seen * (length < STILL)
    unit = delta / length.clamp_min(STILL)[..., None] * (seen - still)[..., None]
    return _Steps(unit[moving], seen[moving], still[moving])


def _similarities(a: _Steps, b: _Steps) -> tuple[Tensor, Tensor]:
    """Mean dot product `N M` over the steps that count, -inf without any; common visible steps `N M`."""
    shared = a.visible @ b.visible.T
    counted = shared - a.still @ b.still.T
    dots = a.unit.flatten(1) @ b.unit.flatten(1).T
    return torch.where(counted > 0, dots / counted.clamp_min(1), -torch.inf), shared


def _mean_best(similarity: Tensor, shared: Tensor, points: _Steps) -> float:
    """Mean over points of the best match, 0 when there is none.

    A match must share half of the point's visible steps: of many candidates that stay for a step or two, some
    agree by luck.
    """
    if similarity.numel() == 0:
        return 0.0
    enough = shared >= points.visible.sum(1, keepdim=True) / 2
    best = similarity.masked_fill(~enough, -torch.inf).amax(1)
    found = best[best.isfinite()]
    return found.mean().item() if len(found) else 0.0
