"""Motion representation alignment (paper section "MoRA"): what the motion LoRA is trained for.

`L = L_temporal + alpha L_MoRA`. The clean video that the model predicts is decoded to pixels, and its optical
flow between adjacent frames is pulled to the reference video's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..decoding.flow_gradient import FlowComparison, PairFlows, compute_flow_loss
from ..decoding.state import StreamingDecoder
from ..decoding.windows import DecodeWindow, take_whole_clip
from ..lora.plan import MOTION, SparsePlan
from ..wan.flow_matching import add_noise, velocity_target, velocity_weight, x0_from_velocity
from ..wan.interfaces import Denoiser
from ..wan.settings import declare_setting

ANCHOR_SCALE = 2**0.5
"""a of MotionDirector's debiasing; b is 1, so that a^2 - b^2 = 1 keeps the motion part's size."""

LATENTS_AT_ONCE = 1
"""Whose decoding is one graph in the low-memory mode; two halve the copying and need 2.5 GB more."""
DECODE_MODES = ("auto", "exact", "exact-low-memory", "windowed", "tiny")
"""`exact` decodes the whole clip in every step (paper), `exact-low-memory` too with its graph in pieces,
`windowed` a window of it, `tiny` the whole clip with a small decoder.
"""
_SMALLER = "lower batch_size, the frames, or the width and height"
MEMORY_ADVICE = {
    "exact": "Change decode to 'exact-low-memory', which has the same gradient, or to 'windowed'",
    "exact-low-memory": "Change decode to 'tiny', with the file of a tiny decoder",
    "windowed": "Lower window or context, or change decode to 'tiny', with the file of a tiny decoder",
}
"""What needs less memory than each way to decode."""


@dataclass(frozen=True)
class MotionSettings:
    """The paper's values, and the choices it leaves open."""

    plan: SparsePlan = declare_setting(
        MOTION,
        "Layers that get the LoRA: the name of a plan, or roles such as v,o,ffn.0,ffn.2. 'motion' is the "
        "paper's: it leaves room for a subject LoRA.",
    )
    rank: int = declare_setting(
        64,
        "Rank of the LoRA. Higher holds more detail of the motion, and more of the clip's looks.",
    )
    width: int = declare_setting(
        576,
        "Width that the clip is resized and cropped to, a multiple of 16. Higher needs more memory.",
    )
    height: int = declare_setting(
        320,
        "Height that the clip is resized and cropped to, a multiple of 16. Higher needs more memory.",
    )
    frames: int = declare_setting(
        49,
        "Frames of the clip, 4n+1. More show more of the motion and need more memory and time.",
    )
    mora_weight: float = declare_setting(
        1.0,
        "Weight of the optical-flow loss (MoRA; alpha in the paper). Higher follows the clip's motion "
        "more closely; 0 turns it off, and SEA-RAFT and the decoder are then not needed.",
    )
    debias: bool = declare_setting(
        True,
        "Add MotionDirector's debiased loss, which removes what all frames have in common, so that the "
        "LoRA learns motion, not appearance. The authors' code does.",
    )
    flow_weight: str = declare_setting(
        "none",
        "How the flow loss counts by noise level: 'none' counts all levels the same (paper); 'clean' "
        "counts it less at high noise, where the predicted video is a blur.",
    )
    weighted_velocity: bool = declare_setting(
        True,
        "Weight the velocity loss by noise level, most in the middle, as the authors train. Off, all "
        "levels count the same.",
    )
    shift: float = declare_setting(
        1.0,
        "Shift of the noise levels in training. Higher trains more at high noise, on layout rather than "
        "detail.",
    )
    decode: str = declare_setting(
        "auto",
        "How a step decodes the video for the flow loss: 'windowed' a part of it, drawn anew each time; "
        "'exact' all of it, as in the paper, for more memory and time; 'exact-low-memory' the same in "
        "less memory, slower; 'tiny' all of it with a small decoder. 'auto' takes 'windowed', or 'tiny' "
        "where memory is short.",
    )
    window: int = declare_setting(
        3,
        "Latents (4 frames each) that a 'windowed' step compares. More show longer motions at once and "
        "need more memory and time. (The authors' code: 6 of the 13 latents of 49 frames.)",
    )
    context: int = declare_setting(
        2,
        "Latents decoded before a window, to warm up the decoder. More come nearer to 'exact' and need "
        "more memory and time.",
    )

    def __post_init__(self):
        if self.decode not in DECODE_MODES:
            raise ValueError(f"decode {self.decode!r} is not known; give one of {', '.join(DECODE_MODES)}.")
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
        windows_by_clip: Mapping[str, Sequence[DecodeWindow]] | None = None,
    ):
        """Decoder and flow net may be None when mora_weight is 0, and only then. `windows_by_clip` are what a
        step may look at, by clip name, all equally likely; without them it is the whole clip.
        """
        self.settings, self.shift, self.windows_by_clip = settings, settings.shift, windows_by_clip
        self.weights: Mapping[str, float] = {"temporal": 1.0, "mora": settings.mora_weight}
        self.flow, change = None, MEMORY_ADVICE.get(settings.decode) if settings.mora_weight else None
        self.memory_advice = f"{change}; or {_SMALLER}." if change else f"{_SMALLER.capitalize()}."
        if settings.mora_weight:
            if decoder is None or flow_net is None:
                raise ValueError(
                    f"MoRA at weight {settings.mora_weight} needs WAN's decoder and a net for optical flow. "
                    "Load both, or set mora_weight to 0 to train on the temporal loss alone."
                )
            at_once = LATENTS_AT_ONCE if settings.decode == "exact-low-memory" else 0
            self.flow = FlowComparison(decoder, flow_net, flow_alignment_loss, at_once)

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
        self, flow: FlowComparison, x0: Tensor, batch, sigma: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Flow loss times its weight; samples that weigh nothing are not decoded."""
        windows = self._draw_windows(batch.name, x0.shape[2], generator)
        weight = flow_weight(sigma, self.settings.flow_weight).to(x0.dtype)
        counted = weight.nonzero()[:, 0]
        if not len(counted):
            return torch.zeros_like(weight)
        chosen = [windows[index] for index in counted.tolist()]
        loss = compute_flow_loss(x0[counted], batch.reference_flow[counted], flow, chosen)
        return torch.zeros_like(weight).index_put((counted,), weight[counted] * loss.to(weight))

    def _draw_windows(
        self, names: Sequence[str], latents: int, generator: torch.Generator
    ) -> list[DecodeWindow]:
        """Draw one of its clip's windows for each sample, all equally likely."""
        by_clip = self.windows_by_clip or {}
        choices = [by_clip.get(name) or take_whole_clip(latents) for name in names]
        drawn = torch.rand(len(names), generator=generator).tolist()
        return [some[int(place * len(some))] for some, place in zip(choices, drawn, strict=True)]
