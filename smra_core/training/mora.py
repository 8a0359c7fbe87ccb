"""Motion representation alignment (paper section "MoRA"): what the motion LoRA is trained for.

`L = L_temporal + alpha L_MoRA`. The clean video that the model predicts is decoded to pixels, and its optical
flow between adjacent frames is pulled to the reference video's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..decoding.flow_gradient import FlowObjective, PairFlows, StreamingDecoder, Stretch, streamed_loss
from ..decoding.windows import whole_clip
from ..lora.plan import MOTION, SparsePlan
from ..wan.flow_matching import add_noise, velocity_target, velocity_weight, x0_from_velocity
from ..wan.interfaces import Denoiser

ANCHOR_SCALE = 2**0.5
"""a of MotionDirector's debiasing; b is 1, so that a^2 - b^2 = 1 keeps the motion part's size."""

LATENTS_AT_ONCE = 1
"""Whose decoding is one graph in the low-memory mode; two halve the copying and need 2.5 GB more."""
DECODES = ("auto", "exact", "exact-low-memory", "windowed", "tiny")
"""`exact` decodes the whole clip in every step (paper), `exact-low-memory` too with its graph in pieces,
`windowed` a window of it, `tiny` the whole clip with a small decoder.
"""
_SMALLER = "lower batch_size, the frames, or the width and height"
LEANER = {
    "exact": "Change decode to 'exact-low-memory', which has the same gradient, or to 'windowed'",
    "exact-low-memory": "Change decode to 'tiny', with the file of a tiny decoder",
    "windowed": "Lower window or context, or change decode to 'tiny', with the file of a tiny decoder",
}
"""What needs less memory than each way to decode."""


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
    decode: str = "auto"
    """How a step looks at its pixels, one of DECODES: `auto` chooses `windowed` or `tiny` by free memory."""
    window: int = 3
    """Latents whose frames a windowed step compares, at a place drawn anew each time (the release: 6 of the
    13 that 49 frames have).
    """
    context: int = 2
    """Latents decoded before a window, so that the decoder knows what came before."""

    def __post_init__(self):
        if self.decode not in DECODES:
            raise ValueError(f"decode {self.decode!r} is not known; give one of {', '.join(DECODES)}.")
        for name in ("window", "context"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1 latent, got {getattr(self, name)}. For the whole clip choose "
                    "decode 'exact'."
                )
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


class MotionObjective:
    """Temporal loss and MoRA; nothing is trained beside the LoRA."""

    def __init__(
        self,
        settings: MotionSettings,
        decoder: StreamingDecoder | None,
        flow_net: PairFlows | None,
        stretches: Mapping[str, Sequence[Stretch]] | None = None,
    ):
        """Decoder and flow net may be None when mora_weight is 0, and only then. `stretches` are what a step
        may look at, by clip name, all equally likely; without them it is the whole clip.
        """
        self.settings, self.shift, self.stretches = settings, settings.shift, stretches
        self.weights: Mapping[str, float] = {"temporal": 1.0, "mora": settings.mora_weight}
        self.flow, change = None, LEANER.get(settings.decode) if settings.mora_weight else None
        self.leaner = f"{change}; or {_SMALLER}." if change else f"{_SMALLER.capitalize()}."
        if settings.mora_weight:
            if decoder is None or flow_net is None:
                raise ValueError(
                    f"MoRA at weight {settings.mora_weight} needs WAN's decoder and a net for optical flow. "
                    "Load both, or set mora_weight to 0 to train on the temporal loss alone."
                )
            at_once = LATENTS_AT_ONCE if settings.decode == "exact-low-memory" else 0
            self.flow = FlowObjective(decoder, flow_net, flow_alignment_loss, at_once)

    def trainables(self) -> dict[str, nn.Parameter]:
        return {}

    def losses(
        self, denoiser: Denoiser, batch, sigma: Tensor, noise: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Per-sample losses of a collated batch of MotionSample."""
        noisy = add_noise(batch.latents, noise, sigma)
        velocity = denoiser.velocity(noisy, sigma, batch.context).velocity
        temporal = self._temporal(velocity, velocity_target(batch.latents, noise), sigma, generator)
        if self.flow is None:
            return {"temporal": temporal}
        x0 = x0_from_velocity(noisy, velocity, sigma)
        mora = self._mora(self.flow, x0, batch, sigma, generator)
        return {"temporal": temporal, "mora": mora}

    def _temporal(
        self, velocity: Tensor, target: Tensor, sigma: Tensor, generator: torch.Generator
    ) -> Tensor:
        batch, _, frames = velocity.shape[:3]
        anchor = None
        if self.settings.debias:
            anchor = torch.randint(frames, (batch,), generator=generator).to(velocity.device)
        loss = temporal_loss(velocity, target, anchor)
        if self.settings.weighted_velocity:
            loss = loss * velocity_weight(sigma, self.settings.shift)
        return loss

    def _mora(
        self, flow: FlowObjective, x0: Tensor, batch, sigma: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Flow loss times its weight; samples that weigh nothing are not decoded."""
        stretches = self._drawn(batch.name, x0.shape[2], generator)
        weight = flow_weight(sigma, self.settings.flow_weight).to(x0.dtype)
        counted = weight.nonzero()[:, 0]
        if not len(counted):
            return torch.zeros_like(weight)
        chosen = [stretches[index] for index in counted.tolist()]
        loss = streamed_loss(x0[counted], batch.reference_flow[counted], flow, chosen)
        return torch.zeros_like(weight).index_put((counted,), weight[counted] * loss.to(weight))

    def _drawn(self, names: Sequence[str], latents: int, generator: torch.Generator) -> list[Stretch]:
        """For each sample one of its clip's stretches, all equally likely."""
        choices = [self.stretches[name] if self.stretches else whole_clip(latents) for name in names]
        drawn = torch.rand(len(names), generator=generator).tolist()
        return [some[int(place * len(some))] for some, place in zip(choices, drawn, strict=True)]
