"""The flow loss as the authors' code computes it, to compare with: one autograd graph from flow to LoRA.

A part of the predicted clip is decoded in overlapping tiles, which are blended, and the flow of each pair of
frames is computed by itself, all in one graph. Written from the description of the code, not taken from it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from smra_core.training.mora import MotionObjective, flow_alignment_loss
from smra_core.wan.latents import denormalize
from smra_core.wan.spec import LATENTS_21
from tests.benchmarks.gpu.sizes import ReleasedDecode


def list_tiles(side: int, tile: int, stride: int) -> list[slice]:
    """Return the tiles along one side; the last one is cut off at the end."""
    starts = range(0, side, stride)
    needed = [start for start in starts if start < stride or start - stride + tile < side]
    return [slice(start, min(start + tile, side)) for start in needed]


def decode_tiled(vae, latents: Tensor, tile: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Decode latents `1 16 f h w` in overlapping tiles; return pixels `1 3 F H W`, the tiles averaged."""
    height, width = latents.shape[-2:]
    total = weight = None
    for rows, columns in _list_places(height, width, tile, stride):
        part = vae.decode(latents[..., rows, columns]).sample
        if total is None:
            shape = (*part.shape[:3], LATENTS_21.stride * height, LATENTS_21.stride * width)
            total, weight = part.new_zeros(shape), part.new_zeros(shape)
        y, x = (slice(LATENTS_21.stride * s.start, LATENTS_21.stride * s.stop) for s in (rows, columns))
        mask = torch.zeros_like(weight)
        mask[..., y, x] = 1
        total = total + torch.nn.functional.pad(
            part, (x.start, total.shape[-1] - x.stop, y.start, total.shape[-2] - y.stop)
        )
        weight = weight + mask
    return total / weight


def _list_places(height, width, tile, stride) -> Iterator[tuple[slice, slice]]:
    for rows in list_tiles(height, tile[0], stride[0]):
        for columns in list_tiles(width, tile[1], stride[1]):
            yield rows, columns


class ReleasedMotionObjective(MotionObjective):
    """The motion objective with the flow loss in the DiT's own graph."""

    def __init__(self, settings, vae, flow_net, how: ReleasedDecode, tiled: bool):
        super().__init__(settings, vae, flow_net.compute_pair_flows)
        self.vae, self.flow_net, self.how, self.tiled = vae, flow_net, how, tiled

    def _compute_mora_loss(self, flow, x0, batch, sigma, generator) -> Tensor:
        """Return the flow loss `B` of the first latents' frames, but for those that are dropped."""
        how = self.how
        latents = denormalize(x0[:, :, : how.latents]).to(next(self.vae.parameters()).dtype)
        pixels = (
            decode_tiled(self.vae, latents, how.tile, how.stride)
            if self.tiled
            else self.vae.decode(latents).sample
        )
        frames = (pixels[0].transpose(0, 1).float()[how.dropped :] + 1) * 127.5
        pairs = zip(frames.split(1), frames[1:].split(1), strict=False)
        found = torch.cat([self.flow_net.flow(before, after) for before, after in pairs])
        reference = batch.reference_flow[0, how.dropped : how.dropped + len(found)]
        return flow_alignment_loss(found, reference)[None]
