"""Metrics of a video: similarity to pictures and to a prompt (DINO-I, CLIP-I, CLIP-T), consistency, motion.

All are pure functions of embeddings, optical flow and point tracks; no model is downloaded. They compute in
float64 on the CPU, because Apple's GPUs have no float64. Cosines lie in
[-1, 1], motion fidelity in [-100, 100]. Points that follow the optical flow give other numbers than the
paper's, which are CoTracker's: compare them among your own runs, never with the paper's 62.89.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

STILL = 0.1
"""Speed, in pixels per step, below which a point counts as still: its direction would be noise."""
LEAST_FLOW = 1e-3
"""Lowest mean length of a reference's flow, in pixels, that motion amount divides by: it may stand still."""

METRIC_HELP = {
    "DINO-I (DINOv2)": "Similarity of the frames to the subject's pictures, by the mean of DINOv2's patch "
    "features. 1 is equal. The paper's DINO-I uses DINO's first version, which gives other numbers.",
    "Motion Fidelity (flow)": "Do points move in the directions of the reference clip? 100: always; "
    "0: unrelated, or nothing moves; -100: opposite. It is measured with optical flow, so the paper's number "
    "is not comparable.",
    "Motion Fidelity x (flow)": "Motion fidelity of the movement to the left and right alone.",
    "Motion Fidelity y (flow)": "Motion fidelity of the movement up and down alone. One axis can hide the "
    "other's faults.",
    "Motion Amount": "Mean speed, as a share of the reference clip's. 1 moves as much, 0 stands still.",
    "Temporal Consistency": "Similarity of each frame to the next. A still picture scores 1, so read it with "
    "the motion.",
}
"""Explanation of each metric that the report shows, by the metric's name."""


class AxisFidelity(NamedTuple):
    """Motion fidelity of movement along each axis, in [-100, 100]: x is left and right, y is up and down."""

    x: float
    y: float


class Tracks(NamedTuple):
    """Paths of points that were followed through a clip."""

    positions: Tensor
    """Positions `N F 2` as (x, y) in pixels; (0, 0) is the center of the top left pixel."""
    visible: Tensor
    """Whether each point is visible, `N F` bool; along the optical flow, a point once lost stays lost."""


def average_pairwise_cosine(frames: Tensor, references: Tensor) -> float:
    """Return the mean cosine of all pairs of frames `F D` and references `R D`, in [-1, 1].

    It is DINO-I for DINO's embeddings, CLIP-I for CLIP's (Ruiz et al., "DreamBooth"), and CLIP-T where the
    only reference is CLIP's embedding of the prompt.
    """
    return (_to_unit_vectors(frames) @ _to_unit_vectors(references).T).mean().item()


def measure_temporal_consistency(frames: Tensor) -> float:
    """Return the mean cosine of the embeddings `F D` of consecutive frames, in [-1, 1].

    Raise ValueError for fewer than two frames.
    """
    if len(frames) < 2:
        raise ValueError(
            f"Temporal consistency compares neighbors; got {len(frames)} frame(s), give at least 2."
        )
    units = _to_unit_vectors(frames)
    return (units[1:] * units[:-1]).sum(-1).mean().item()


def measure_subject_consistency(frames: Tensor) -> float:
    """Return how much the embeddings `F D` of frames stay alike, in [0, 1].

    It is the mean, over all frames but the first, of the average of two cosines, to the first frame and to
    the frame before, each at least 0 (Huang et al., "VBench", subject consistency). Raise ValueError for
    fewer than two frames.
    """
    if len(frames) < 2:
        raise ValueError(f"Subject consistency compares frames; got {len(frames)} frame(s), give at least 2.")
    units = _to_unit_vectors(frames)
    to_first = (units[1:] @ units[0]).clamp_min(0)
    to_previous = (units[1:] * units[:-1]).sum(-1).clamp_min(0)
    return ((to_first + to_previous) / 2).mean().item()


def average_patches(patches: Tensor) -> Tensor:
    """Return one embedding `F D` per frame: the mean of an encoder's patch features `F N D`."""
    return patches.float().mean(1)


def measure_motion_amount(flow: Tensor, reference: Tensor) -> float:
    """Return the mean length of the flow `F-1 2 H W` as a share of the reference's.

    0 is a still video; at 1 the video moves as much as the reference.
    """
    return (_average_length(flow) / _average_length(reference).clamp_min(LEAST_FLOW)).item()


def chain_tracks(flow: Tensor, grid: int, backward: Tensor | None = None) -> Tracks:
    """Follow `grid` x `grid` points, spread evenly over frame 0, along the flow: p[t+1] = p[t] +
    flow[t](p[t]).

    `flow` is `F-1 2 H W` in pixels and is sampled bilinearly. A point is lost where it leaves the frame. With
    the `backward` flow (frame t+1 to t, same shape) it is also lost where the way back misses the start by
    more than 1 px + 5 % of both lengths, which means that something covered it. Raise ValueError for a grid
    below 1.
    """
    height, width = flow.shape[-2:]
    points = spread_points(grid, height, width).to(flow)
    positions, visible = [points], [torch.ones(len(points), dtype=torch.bool, device=flow.device)]
    for step in range(len(flow)):
        moved = points + _sample_flow(flow[step], points)
        kept = visible[-1] & _is_inside(moved, height, width)
        if backward is not None:
            kept = kept & _is_consistent(moved - points, _sample_flow(backward[step], moved))
        points = moved
        positions.append(points)
        visible.append(kept)
    return Tracks(torch.stack(positions, 1), torch.stack(visible, 1))


def measure_motion_fidelity(
    tracks_a: Tensor, visible_a: Tensor, tracks_b: Tensor, visible_b: Tensor
) -> float:
    """Return how alike two clips move, in [-100, 100]: the mean over points of the best match in the other
    clip.

    Tracks are `N F 2` and `M F 2` (any number of axes), visible `N F` and `M F`. Two points match by the mean
    dot product of their unit displacements over the steps in which both are visible (Yatim et al.,
    "Space-Time Diffusion Features"). Steps in which neither moves 0.1 px are dropped. Points that hardly move
    at all are left out; otherwise a still background would decide. Matches are taken from each clip to the
    other. A clip in which nothing moves scores 0. Raise ValueError for clips of different lengths.
    """
    if tracks_a.shape[1] != tracks_b.shape[1]:
        raise ValueError(
            f"Motion fidelity compares clips of one length; got tracks of {tracks_a.shape[1]} and "
            f"{tracks_b.shape[1]} frames. Trim the longer clip."
        )
    a, b = _select_moving_steps(tracks_a, visible_a), _select_moving_steps(tracks_b, visible_b)
    similarity, shared = _compare_points(a, b)
    return 50 * (_average_best_match(similarity, shared, a) + _average_best_match(similarity.T, shared.T, b))


def measure_motion_fidelity_axes(
    tracks_a: Tensor, visible_a: Tensor, tracks_b: Tensor, visible_b: Tensor
) -> AxisFidelity:
    """Return the motion fidelity of each axis by itself; the arguments are those of
    `measure_motion_fidelity`.

    When both axes are measured together, the one that moves more hides the other: a straight walk then passes
    for a zigzag.
    """
    x, y = (
        measure_motion_fidelity(
            tracks_a[..., axis : axis + 1], visible_a, tracks_b[..., axis : axis + 1], visible_b
        )
        for axis in (0, 1)
    )
    return AxisFidelity(x, y)


def _to_unit_vectors(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.cpu().double(), dim=-1)


def _average_length(flow: Tensor) -> Tensor:
    return flow.norm(dim=1).mean()


def spread_points(grid: int, height: int, width: int) -> Tensor:
    """Return the centers `N 2` of `grid` x `grid` equal cells, as (x, y) in pixels, row by row."""
    if grid < 1:
        raise ValueError(f"Tracking needs a grid of at least 1 point per side, got {grid}.")
    cell = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(cell * height - 0.5, cell * width - 0.5, indexing="ij")
    return rearrange([x, y], "xy i j -> (i j) xy")


def _sample_flow(flow: Tensor, points: Tensor) -> Tensor:
    """Sample a flow `2 H W` bilinearly at points `N 2`, as `N 2`; outside the frame, its edge counts."""
    height, width = flow.shape[-2:]
    size = points.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    positions = (2 * points / size - 1).reshape(1, -1, 1, 2)
    values = F.grid_sample(flow[None], positions, padding_mode="border", align_corners=True)
    return rearrange(values, "1 xy n 1 -> n xy")


def _is_inside(points: Tensor, height: int, width: int) -> Tensor:
    x, y = points.unbind(-1)
    return (x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)


def _is_consistent(forth: Tensor, back: Tensor) -> Tensor:
    """Return for each point, `N` bool, whether the way forth and the way back `N 2` cancel each other."""
    return (forth + back).norm(dim=-1) <= 1 + 0.05 * (forth.norm(dim=-1) + back.norm(dim=-1))


class _Steps(NamedTuple):
    """Displacements of points from one frame to the next."""

    unit: Tensor
    """Displacements of length 1, `N T axes`; 0 where a point is still or not visible."""
    visible: Tensor
    """Whether a point is visible at both ends of the step, `N T`, 0 or 1."""
    still: Tensor
    """Whether a point is visible and moves less than STILL, `N T`, 0 or 1."""


def _select_moving_steps(tracks: Tensor, visible: Tensor) -> _Steps:
    """Return the steps of the points that move at least STILL per visible step on average."""
    seen = (visible[:, 1:] & visible[:, :-1]).cpu().double()
    delta = tracks.cpu().double().diff(dim=1)
    length = delta.norm(dim=-1)
    moving = ((length * seen).sum(1) >= STILL * seen.sum(1)) & (seen.sum(1) > 0)
    still = seen * (length < STILL)
    unit = delta / length.clamp_min(STILL)[..., None] * (seen - still)[..., None]
    return _Steps(unit[moving], seen[moving], still[moving])


def _compare_points(a: _Steps, b: _Steps) -> tuple[Tensor, Tensor]:
    """Return the mean dot product `N M` over the steps that count, and the number `N M` of common visible
    steps.

    The mean is -inf for a pair without a step that counts.
    """
    shared = a.visible @ b.visible.T
    counted = shared - a.still @ b.still.T
    dots = a.unit.flatten(1) @ b.unit.flatten(1).T
    return torch.where(counted > 0, dots / counted.clamp_min(1), -torch.inf), shared


def _average_best_match(similarity: Tensor, shared: Tensor, points: _Steps) -> float:
    """Return the mean over points of the best match, 0 when there is none.

    A match must share half of the point's visible steps: among many candidates that stay for a step or two,
    some agree by luck.
    """
    if similarity.numel() == 0:
        return 0.0
    enough = shared >= points.visible.sum(1, keepdim=True) / 2
    best = similarity.masked_fill(~enough, -torch.inf).amax(1)
    found = best[best.isfinite()]
    return found.mean().item() if len(found) else 0.0
