"""SEA-RAFT: optical flow between frames, differentiable with respect to the frames.

Frames are RGB `B 3 H W` in 0..255; flow is `B 2 H W`, (dx, dy) in pixels of the given size, from the first
frame to the second. `load_sea_raft` returns a frozen net in eval mode.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..storage.weight_check import fill_module
from ..storage.weight_file import read_weight_file, write_weight_file
from ..wan.recompute import run_checkpointed
from .sea_raft_config import SeaRaftConfig, choose_scale
from .sea_raft_files import find_config, to_metadata, with_both_norm_names
from .sea_raft_layers import (
    CELL,
    CorrelationPyramid,
    FeatureEncoder,
    UpdateBlock,
    make_cell_grid,
    upsample_convex,
)

PAIRS_PER_CHUNK = 4
"""Number of frame pairs whose activations are in memory at the same time: 3.4 GB for M at 576x320 (0.84 GB a
pair).
"""


class FlowEstimate(NamedTuple):
    """Result of one refinement on the pixel grid of the (padded) input."""

    flow: Tensor
    """`B 2 H W` in pixels."""
    info: Tensor
    """Two mixture logits and two log scales of the error's mixture of Laplacians, `B 4 H W`."""


class SeaRaft(nn.Module):
    """SEA-RAFT (Wang et al., ECCV 2024). A new net is random and in eval mode; call `.train()` to train it.

    Gradients reach the frames through features, context and correlation values; sampling positions and the
    accumulated flow are detached at every iteration, as published.
    """

    def __init__(self, config: SeaRaftConfig):
        super().__init__()
        self.config = config
        dim, sizes = config.dim, (config.stem, config.widths, config.blocks)
        self.cnet = FeatureEncoder(6, 2 * dim, *sizes)
        self.init_conv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1)
        self.upsample_weight = _make_head(dim, 9 * CELL * CELL, kernel=1)
        self.flow_head = _make_head(dim, 6, kernel=3)
        self.fnet = FeatureEncoder(3, 2 * dim, *sizes)
        self.update_block = UpdateBlock(config.correlations, dim, config.refinements)
        self.eval()

    def train(self, mode: bool = True) -> "SeaRaft":
        """Set the mode, but keep a frozen net in eval mode, as its batch norms must keep their statistics."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def freeze(self) -> "SeaRaft":
        """Switch off the gradients of the weights, keep the running statistics for good, and return the
        net.
        """
        return self.requires_grad_(False).eval()

    def flow(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        """Return the flow `B 2 H W` from each frame of a to the same frame of b, float32 even under autocast.

        ValueError if the net is in training mode, if the shapes differ, or if the frames are smaller than
        `config.least_side`.
        """
        if frames_a.shape != frames_b.shape or frames_a.ndim != 4:
            raise ValueError(
                f"Flow needs two equal batches `B 3 H W`, got {tuple(frames_a.shape)} and "
                f"{tuple(frames_b.shape)}."
            )
        size = frames_a.shape[-2:]
        with torch.autocast(frames_a.device.type, enabled=False):
            a, b = self._prepare_frames(frames_a), self._prepare_frames(frames_b)
            return self._restore_size(self._compute_last_flow(a, b, self.fnet(a), self.fnet(b)), size)

    def compute_pair_flows(self, frames: Tensor, pairs_per_chunk: int = PAIRS_PER_CHUNK) -> Tensor:
        """Return the flow `F-1 2 H W` from each frame `F 3 H W` to the next; features are computed once per
        frame.

        Processes a few pairs at a time. With gradients, a clip longer than one chunk is recomputed chunk by
        chunk in the backward pass, so that the peak holds one chunk's activations. Errors as in `flow`.
        """
        if frames.ndim != 4 or len(frames) < 2:
            raise ValueError(f"Flow of a clip needs `F 3 H W` with F >= 2, got {tuple(frames.shape)}.")
        chunks = list(_split_overlapping(frames, pairs_per_chunk))
        if len(chunks) == 1 or not (frames.requires_grad and torch.is_grad_enabled()):
            return torch.cat([self._compute_chunk_flow(chunk) for chunk in chunks])
        return torch.cat([run_checkpointed(self._compute_chunk_flow, chunk) for chunk in chunks])

    def _compute_chunk_flow(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, enabled=False):
            images = self._prepare_frames(frames)
            features = self.fnet(images)
            flow = self._compute_last_flow(images[:-1], images[1:], features[:-1], features[1:])
            return self._restore_size(flow, frames.shape[-2:])

    def estimate_refinements(self, frames_a: Tensor, frames_b: Tensor) -> list[FlowEstimate]:
        """Return flow and uncertainty of every refinement, as training needs them, at the given size
        (multiples of 8).
        """
        a, b = _scale_to_signed(frames_a), _scale_to_signed(frames_b)
        refinements = list(self._refine(a, b, self.fnet(a), self.fnet(b)))
        return [
            _upsample_estimate(flow, info, self._predict_upsampling(hidden))
            for flow, info, hidden in refinements
        ]

    def _compute_last_flow(self, a: Tensor, b: Tensor, features_a: Tensor, features_b: Tensor) -> Tensor:
        *_, (flow, _, hidden) = self._refine(a, b, features_a, features_b)
        return upsample_convex(flow, self._predict_upsampling(hidden), CELL)

    def _refine(self, a: Tensor, b: Tensor, features_a: Tensor, features_b: Tensor) -> Iterator[tuple]:
        """Yield (flow `B 2 h w` in cells, info `B 4 h w`, hidden state) of the first guess and of each
        iteration.
        """
        hidden, context = self.init_conv(self.cnet(torch.cat([a, b], 1))).chunk(2, 1)
        pyramid = CorrelationPyramid(features_a, features_b, self.config.levels, self.config.radius)
        start = make_cell_grid(features_a)
        flow, info = self.flow_head(hidden).split([2, 4], 1)
        yield flow, info, hidden
        for _ in range(self.config.iterations):
            flow = flow.detach()
            hidden = self.update_block(hidden, context, pyramid.look_up(start + flow), flow)
            change, info = self.flow_head(hidden).split([2, 4], 1)
            flow = flow + change
            yield flow, info, hidden

    def _predict_upsampling(self, hidden: Tensor) -> Tensor:
        return 0.25 * self.upsample_weight(hidden)

    def _prepare_frames(self, frames: Tensor) -> Tensor:
        """Resize frames to the working scale, bring them to [-1, 1], and pad all sides to multiples of 8."""
        if self.training:
            raise ValueError(
                "SEA-RAFT is in training mode, where batch statistics give wrong flow. Call .eval() first."
            )
        scale = choose_scale(self.config, *frames.shape[-2:])
        images = _scale_to_signed(frames.float())
        if scale:
            images = F.interpolate(images, scale_factor=2.0**scale, mode="bilinear", align_corners=False)
        return F.pad(images, _compute_padding(*images.shape[-2:]), mode="replicate")

    def _restore_size(self, flow: Tensor, size: torch.Size) -> Tensor:
        """Cut the padding off and resize the flow to the frames' size, in pixels of that size."""
        scale = choose_scale(self.config, *size)
        height, width = (int(side * 2.0**scale) for side in size)
        left, _, top, _ = _compute_padding(height, width)
        flow = flow[..., top : top + height, left : left + width]
        if not scale:
            return flow
        gain = flow.new_tensor([size[1] / width, size[0] / height])[:, None, None]
        return F.interpolate(flow, size=tuple(size), mode="bilinear", align_corners=False) * gain


def load_sea_raft(path: str | Path, scale: int | None = None, iterations: int | None = None) -> SeaRaft:
    """Load the net from a file: frozen, in eval mode, float32, on the CPU.

    S or M is found from the names. `scale` replaces the Spring weights' -1 (0 for Sintel and KITTI weights),
    `iterations` the 4 (with 12, M is the published L). ValueError if the file is not readable (see
    `read_weight_file`), is not SEA-RAFT, or if any weight is missing, unknown, misshapen or not finite.
    """
    file = read_weight_file(path)
    config = find_config(file)
    changes = {name: n for name, n in (("scale", scale), ("iterations", iterations)) if n is not None}
    with torch.device("meta"):  # memory is allocated once the file's weights are known to fit
        net = SeaRaft(replace(config, **changes))
    fill_module(net, with_both_norm_names(file.tensors), str(file.path))
    return net.freeze()


def save_sea_raft(net: SeaRaft, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a net and its sizes as safetensors, with one name per norm; floating-point weights in `dtype`."""
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in net.state_dict().items()
        if ".downsample.1." not in name
    }
    write_weight_file(path, tensors, to_metadata(net.config))


def _make_head(dim: int, outputs: int, kernel: int) -> nn.Sequential:
    wide = nn.Conv2d(dim, 2 * dim, 3, padding=1)
    return nn.Sequential(
        wide, nn.ReLU(inplace=True), nn.Conv2d(2 * dim, outputs, kernel, padding=kernel // 2)
    )


def _scale_to_signed(frames: Tensor) -> Tensor:
    return 2 * (frames / 255) - 1


def _compute_padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the padding (left, right, top, bottom) to multiples of 8, split over both sides."""
    x, y = -width % CELL, -height % CELL
    return x // 2, x - x // 2, y // 2, y - y // 2


def _upsample_estimate(flow: Tensor, info: Tensor, logits: Tensor) -> FlowEstimate:
    return FlowEstimate(upsample_convex(flow, logits, CELL), upsample_convex(info, logits, 1))


def _split_overlapping(frames: Tensor, pairs: int) -> Iterator[Tensor]:
    """Yield chunks of pairs + 1 frames; adjacent chunks share a frame."""
    for start in range(0, len(frames) - 1, pairs):
        yield frames[start : start + pairs + 1]
