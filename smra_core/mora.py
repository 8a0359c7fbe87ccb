"""Motion representation alignment (paper section "MoRA"): what the motion LoRA is trained for.

`L = L_temporal + alpha L_MoRA`. The clean video that the model predicts is decoded to pixels, and its optical
flow between adjacent frames is pulled to the reference video's.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .sparse import MOTION, SparsePlan

ANCHOR_SCALE = 2**0.5
"""a of MotionDirector's debiasing; b is 1, so that a^2 - b^2 = 1 keeps the motion part's size."""


@dataclass(frozen=True)
class MotionSettings:
    """The paper's values, and the choices it leaves open."""

    plan: SparsePlan = MOTION
    rank: int = 64
    width: int = 576
    height: int = 320
    frames: int = 49
    mora_weight: float = 1.0
    """alpha; 0 trains on the temporal loss alone, and decodes nothing."""
    debias: bool = True
    """Add MotionDirector's appearance-debiased velocity loss, as the release does."""
    flow_weight: str = "none"
    """How L_MoRA counts by noise level: `none` (paper), or `clean`, 2 (1 - sigma) and nothing above sigma
    0.9.
    """
    weighted_velocity: bool = True
    """Weight the velocity loss by noise level (flow_matching.velocity_weight), as the release trains."""
    shift: float = 1.0

    def __post_init__(self):
        if self.flow_weight not in ("none", "clean"):
            raise ValueError(f"flow_weight {self.flow_weight!r} is not known; give 'none' or 'clean'.")


class MotionSample(NamedTuple):
    """One reference clip, ready to train on."""

    name: str
    latents: Tensor
    """`16 f h w`, model space."""
    context: Tensor
    """`T 4096`."""
    reference_flow: Tensor
    """`F-1 2 H W`, pixels, between adjacent frames of the clip itself."""


def flow_alignment_loss(flow: Tensor, reference: Tensor) -> Tensor:
    """L_MoRA: L1 of the flow, x in widths and y in heights, summed over both and averaged over pixels and
    pairs.

    `... P 2 H W` in pixels twice; the result has the leading shape. One pixel sideways everywhere gives 1 /
    W.
    """
    height, width = flow.shape[-2:]
    size = flow.new_tensor([width, height]).view(2, 1, 1)
    return ((flow - reference).abs() / size).sum(-3).mean((-1, -2, -3))


def debiased(velocity: Tensor, anchor: Tensor) -> Tensor:
    """Velocity with the appearance that all frames share taken out (MotionDirector, "appearance-debiased
    loss").

    `B C f h w`; `anchor` `B` picks each sample's anchor latent frame. Returns sqrt(2) v - v[anchor].
    """
    index = anchor.view(-1, 1, 1, 1, 1).expand(-1, velocity.shape[1], 1, *velocity.shape[3:])
    return ANCHOR_SCALE * velocity - velocity.gather(2, index)


def temporal_loss(velocity: Tensor, target: Tensor, anchor: Tensor | None = None) -> Tensor:
    """L_temporal: mean squared velocity error, plus that of the debiased velocities when an anchor is given.
    `B`.
    """
    error = ((velocity - target) ** 2).flatten(1).mean(1)
    if anchor is None:
        return error
    return error + ((debiased(velocity, anchor) - debiased(target, anchor)) ** 2).flatten(1).mean(1)


def flow_weight(sigma: Tensor, kind: str) -> Tensor:
    """Weight of L_MoRA by noise level, `B`: 1 (`none`, paper), or 2 (1 - sigma) below 0.9 and 0 above
    (`clean`).

    Near sigma 1 the predicted video is a blur whose flow says little; `clean` has mean 0.99 over uniform
    sigmas.
    """
    if kind == "none":
        return torch.ones_like(sigma)
    return torch.where(sigma > 0.9, 0.0, 2 * (1 - sigma))
