"""SEA-RAFT: optical flow between frames, differentiable with respect to the frames.

Frames are RGB `B 3 H W` in 0..255; flow is `B 2 H W`, (dx, dy) in pixels of the given size, from the first
frame to the second. A net comes frozen and in eval mode from `load_sea_raft`.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..storage.weight_check import fill_module
from ..storage.weight_file import read_weight_file, write_weight_file
from .sea_raft_config import SeaRaftConfig, working_scale
from .sea_raft_files import config_of, to_metadata, with_both_norm_names
from .sea_raft_layers import CELL, CorrelationPyramid, FeatureEncoder, UpdateBlock, cell_grid, upsample_convex

log = logging.getLogger("smrabooth")

PAIRS_PER_CHUNK = 4
"""Pairs whose activations are alive together: 3.4 GB for M at 576x320 (0.84 GB a pair)."""


class FlowEstimate(NamedTuple):
    """One refinement's result on the pixel grid of the (padded) input."""

    flow: Tensor
    """`B 2 H W` in pixels."""
    info: Tensor
    """`B 4 H W`: two mixture logits, then two log scales, of the error's mixture of Laplacians."""


class SeaRaft(nn.Module):
    """SEA-RAFT (Wang et al., ECCV 2024). New nets are random and in eval mode; `.train()` only to train one.

    Gradients reach the frames through features, context and correlation values; sampling positions and the
    accumulated flow are detached at every iteration, as published.
    """

    def __init__(self, config: SeaRaftConfig):
        super().__init__()
        self.config = config
        dim, sizes = config.dim, (config.stem, config.widths, config.blocks)
        self.cnet = FeatureEncoder(6, 2 * dim, *sizes)
        self.init_conv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1)
        self.upsample_weight = _head(dim, 9 * CELL * CELL, kernel=1)
        self.flow_head = _head(dim, 6, kernel=3)
        self.fnet = FeatureEncoder(3, 2 * dim, *sizes)
        self.update_block = UpdateBlock(config.correlations, dim, config.refinements)
        self.eval()

    def train(self, mode: bool = True) -> "SeaRaft":
        """As for any module, but a frozen net stays in eval: its batch norms must keep their statistics."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def freeze(self) -> "SeaRaft":
        """No gradients to the weights, running statistics for good."""
        return self.requires_grad_(False).eval()

    def flow(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        """Flow from each frame of a to its partner in b, float32, whatever autocast says.

        ValueError if the net is in training mode, the frames disagree, or they are smaller than
        `config.least_side`.
        """
        if frames_a.shape != frames_b.shape or frames_a.ndim != 4:
            raise ValueError(
                f"Flow needs two equal batches `B 3 H W`, got {tuple(frames_a.shape)} and "
                f"{tuple(frames_b.shape)}."
            )
        size = frames_a.shape[-2:]
        with torch.autocast(frames_a.device.type, enabled=False):
            a, b = self._prepare(frames_a), self._prepare(frames_b)
            return self._restored(self._last_flow(a, b, self.fnet(a), self.fnet(b)), size)

    def compute_pair_flows(self, frames: Tensor, pairs_per_chunk: int = PAIRS_PER_CHUNK) -> Tensor:
        """Flow from each frame to the next: `F 3 H W` to `F-1 2 H W`, features computed once per frame.

        Works through a few pairs at a time; with gradients, a clip longer than one chunk is recomputed chunk
        by chunk in backward, so that one chunk's activations are the peak. Errors as in `flow`.
        """
        if frames.ndim != 4 or len(frames) < 2:
            raise ValueError(f"Flow of a clip needs `F 3 H W` with F >= 2, got {tuple(frames.shape)}.")
        chunks = list(_overlapping(frames, pairs_per_chunk))
        if len(chunks) == 1 or not (frames.requires_grad and torch.is_grad_enabled()):
            return torch.cat([self._flow_of_chunk(chunk) for chunk in chunks])
        return torch.cat([_recomputed(self._flow_of_chunk, chunk) for chunk in chunks])

    def _flow_of_chunk(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, enabled=False):
            images = self._prepare(frames)
            features = self.fnet(images)
            flow = self._last_flow(images[:-1], images[1:], features[:-1], features[1:])
            return self._restored(flow, frames.shape[-2:])

    def estimate_refinements(self, frames_a: Tensor, frames_b: Tensor) -> list[FlowEstimate]:
        """Every refinement's flow and uncertainty at the size given (multiples of 8): what training needs."""
        a, b = _signed(frames_a), _signed(frames_b)
        refinements = list(self._refine(a, b, self.fnet(a), self.fnet(b)))
        return [_upsampled(flow, info, self._logits(hidden)) for flow, info, hidden in refinements]

    def _last_flow(self, a: Tensor, b: Tensor, features_a: Tensor, features_b: Tensor) -> Tensor:
        *_, (flow, _, hidden) = self._refine(a, b, features_a, features_b)
        return upsample_convex(flow, self._logits(hidden), CELL)

    def _refine(self, a: Tensor, b: Tensor, features_a: Tensor, features_b: Tensor) -> Iterator[tuple]:
        """(flow `B 2 h w` in cells, info `B 4 h w`, hidden state), the first guess and each iteration."""
        hidden, context = self.init_conv(self.cnet(torch.cat([a, b], 1))).chunk(2, 1)
        pyramid = CorrelationPyramid(features_a, features_b, self.config.levels, self.config.radius)
        start = cell_grid(features_a)
        flow, info = self.flow_head(hidden).split([2, 4], 1)
        yield flow, info, hidden
        for _ in range(self.config.iterations):
            flow = flow.detach()
            hidden = self.update_block(hidden, context, pyramid.lookup(start + flow), flow)
            change, info = self.flow_head(hidden).split([2, 4], 1)
            flow = flow + change
            yield flow, info, hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        return 0.25 * self.upsample_weight(hidden)

    def _prepare(self, frames: Tensor) -> Tensor:
        """Scaled, in [-1, 1], padded on all sides to multiples of 8 pixels."""
        if self.training:
            raise ValueError(
                "SEA-RAFT is in training mode: call .eval() first; batch statistics give wrong flow."
            )
        scale = working_scale(self.config, *frames.shape[-2:])
        images = _signed(frames.float())
        if scale:
            images = F.interpolate(images, scale_factor=2.0**scale, mode="bilinear", align_corners=False)
        return F.pad(images, _padding(*images.shape[-2:]), mode="replicate")

    def _restored(self, flow: Tensor, size: torch.Size) -> Tensor:
        """Cut the padding off and go back to the size of the frames, in its pixels."""
        scale = working_scale(self.config, *size)
        height, width = (int(side * 2.0**scale) for side in size)
        left, _, top, _ = _padding(height, width)
        flow = flow[..., top : top + height, left : left + width]
        if not scale:
            return flow
        gain = flow.new_tensor([size[1] / width, size[0] / height])[:, None, None]
        return F.interpolate(flow, size=tuple(size), mode="bilinear", align_corners=False) * gain


def load_sea_raft(path: str | Path, scale: int | None = None, iterations: int | None = None) -> SeaRaft:
    """The net in a file, frozen, in eval mode, float32, on the CPU.

    S or M is found from the names. `scale` replaces the Spring weights' -1 (0 for Sintel and KITTI weights),
    `iterations` the 4 (12 makes M the published L). ValueError if the file is not readable (see
    `read_weight_file`), is not SEA-RAFT, or if any weight is missing, unknown, misshapen or not finite.
    """
    file = read_weight_file(path)
    config = config_of(file)
    changes = {name: n for name, n in (("scale", scale), ("iterations", iterations)) if n is not None}
    with torch.device("meta"):  # memory is taken once the file is known to fill it
        net = SeaRaft(replace(config, **changes))
    fill_module(net, with_both_norm_names(file.tensors), str(file.path))
    log.info("SEA-RAFT: %s from %s", config.name, file.path.name)
    return net.freeze()


def save_sea_raft(net: SeaRaft, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a net and its sizes as safetensors, one name per norm; floating weights in `dtype`."""
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in net.state_dict().items()
        if ".downsample.1." not in name
    }
    write_weight_file(path, tensors, to_metadata(net.config))


def _head(dim: int, outputs: int, kernel: int) -> nn.Sequential:
    wide = nn.Conv2d(dim, 2 * dim, 3, padding=1)
    return nn.Sequential(
        wide, nn.ReLU(inplace=True), nn.Conv2d(2 * dim, outputs, kernel, padding=kernel // 2)
    )


def _signed(frames: Tensor) -> Tensor:
    return 2 * (frames / 255) - 1


def _padding(height: int, width: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) up to multiples of 8, split over both sides."""
    x, y = -width % CELL, -height % CELL
    return x // 2, x - x // 2, y // 2, y - y // 2


def _upsampled(flow: Tensor, info: Tensor, logits: Tensor) -> FlowEstimate:
    return FlowEstimate(upsample_convex(flow, logits, CELL), upsample_convex(info, logits, 1))


def _overlapping(frames: Tensor, pairs: int) -> Iterator[Tensor]:
    """Pieces of pairs + 1 frames that share their border frames."""
    for start in range(0, len(frames) - 1, pairs):
        yield frames[start : start + pairs + 1]


def _recomputed(function, frames: Tensor) -> Tensor:
    result = checkpoint(function, frames, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(result, Tensor)
    return result
