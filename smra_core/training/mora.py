"""Motion representation alignment (paper section "MoRA"): the loss of the motion LoRA.

`L = L_temporal + alpha L_MoRA`. The clean video that the model predicts is decoded to pixels, and the optical
flow between its adjacent frames is compared with that of the reference video.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..decoding.flow_gradient import FlowComparison, PairFlows, compute_flow_loss
from ..decoding.state import StreamingDecoder
from ..decoding.windows import DecodeWindow, spread_evenly, take_whole_clip
from ..encoders.sea_raft import PAIRS_PER_CHUNK
from ..wan.condition import DENOISE_MASK, NO_INPUTS, ExtraInputs
from ..wan.flow_matching import (
    add_noise,
    list_training_levels,
    velocity_target,
    velocity_weight,
    x0_from_velocity,
)
from ..wan.interfaces import Denoiser
from ..wan.noise_range import WHOLE, NoiseRange
from .motion_settings import CLEAN_BELOW, MotionSettings
from .preservation import PRESERVE, BaseModel, preservation_loss
from .temporal_loss import compute_difference_loss, draw_anchors, temporal_loss

LATENTS_AT_ONCE = 1
"""Number of latents decoded in one autograd graph in `exact-low-memory` mode. With 2, half as much is copied,
for 2.5 GB more.
"""


class MotionSample(NamedTuple):
    """Encoded reference clip, or a batch of them with the axis `B` first."""

    name: str
    latents: Tensor
    """Latents `C f h w` in model space."""
    context: Tensor
    """Text context `T 4096`."""
    reference_flow: Tensor
    """Optical flow `F-1 2 H W` in pixels between adjacent frames of the clip itself."""
    extra: ExtraInputs = NO_INPUTS
    """What a variant of WAN takes besides (see wan.condition)."""
    given: Tensor | None = None
    """Whether each latent is given to the model, bool `f`; None where no latent is."""
    mask_latent: Tensor | None = None
    """Mask `1 f h w` on the latent grid, 1 where the clip counts; None where all of it does."""
    flow_weight_px: Tensor | None = None
    """Weight `F-1 1 H W` of the flow's pixels, with mean 1: 0 where the clip does not count. None is 1."""


def flow_alignment_loss(flow: Tensor, reference: Tensor, weight_px: Tensor | None = None) -> Tensor:
    """Return L_MoRA: the L1 difference of the flows, x in widths and y in heights, summed over both and
    averaged over pixels and pairs.

    Both flows are `... P 2 H W` in pixels; the result has the leading shape. A flow that is off by one pixel
    in x everywhere gives 1 / W. `weight_px` are factors `... P 1 H W` of the pixels' differences.
    """
    height, width = flow.shape[-2:]
    size = flow.new_tensor([width, height]).view(2, 1, 1)
    difference = ((flow - reference).abs() / size).sum(-3)
    if weight_px is not None:
        difference = difference * weight_px.squeeze(-3)
    return difference.mean((-1, -2, -3))


def draw_first_frames(shape: Sequence[int], share: float, generator: torch.Generator) -> Tensor:
    """Draw which of the latents `B C f h w` are given to the model, bool `B f`: the first of a `share` of the
    samples, and no other.
    """
    given = torch.zeros(shape[0], shape[2], dtype=torch.bool)
    given[:, 0] = torch.rand(shape[0], generator=generator) < share
    return given


def give_latents(batch: MotionSample, given: Tensor, sigma: Tensor) -> tuple[MotionSample, Tensor]:
    """Return the batch with latents `given`, bool `B f`, to the model as TI2V-5B takes them, and the noise
    level `B f` of each latent: 0 for those.
    """
    mask = (
        (~given).to(batch.latents.dtype)[:, None, :, None, None].expand(-1, -1, -1, *batch.latents.shape[3:])
    )
    extra = {**batch.extra, DENOISE_MASK: mask}
    return batch._replace(extra=extra, given=given), sigma[:, None] * ~given


def flow_weight(sigma: Tensor, kind: str, shift: float = 1.0, noise_range: NoiseRange = WHOLE) -> Tensor:
    """Return the weight `B` of L_MoRA at each noise level: 1 (`none`, paper), or in proportion to 1 - sigma
    up to 0.9 and 0 above (`clean`).

    Both have mean 1 over the levels that training draws from the range with this shift.
    """
    if kind == "none":
        return torch.ones_like(sigma)
    mean = _compute_cleanness(list_training_levels(shift, noise_range)).mean().item()
    return _compute_cleanness(sigma) / mean


def _compute_cleanness(sigma: Tensor) -> Tensor:
    return torch.where(sigma > CLEAN_BELOW, 0.0, 1 - sigma)


class MotionObjective:
    """Objective of temporal loss and MoRA; no parameters are trained besides the LoRA."""

    def __init__(
        self,
        settings: MotionSettings,
        decoder: StreamingDecoder | None,
        flow_net: PairFlows | None,
        windows_by_clip: Mapping[str, Sequence[DecodeWindow]] | None = None,
        memory_advice: str = "Lower batch_size, the frames, or the width and height.",
    ):
        """Build the objective; decoder and flow net may be None if mora_weight is 0 (ValueError otherwise).

        `windows_by_clip` are the windows that a step may draw, by clip name, all equally likely; without them
        a step compares the whole clip.
        """
        self.settings, self.windows_by_clip = settings, windows_by_clip
        self.shift, self.noise_range = settings.shift, settings.noise_range
        self.weights: Mapping[str, float] = {
            "temporal": 1.0, "mora": settings.mora_weight, PRESERVE: settings.preserve_weight
        }  # fmt: skip
        self.base: BaseModel | None = None
        self.shares: Mapping[str, float] = {"mora": settings.mora_share}
        self.flow, self.memory_advice = None, memory_advice
        if settings.mora_weight:
            if decoder is None or flow_net is None:
                raise ValueError(
                    f"MoRA at mora_weight {settings.mora_weight} needs WAN's decoder and a net for optical "
                    "flow. Load both, or set mora_weight to 0 to train on the temporal loss alone."
                )
            at_once = LATENTS_AT_ONCE if settings.decode == "exact-low-memory" else 0
            self.flow = FlowComparison(decoder, flow_net, flow_alignment_loss, at_once, PAIRS_PER_CHUNK)

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return no parameters."""
        return {}

    def losses(
        self,
        denoiser: Denoiser,
        batch: MotionSample,
        sigma: Tensor,
        noise: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the losses `temporal`, `mora` and `preserve`, each `B`, of a collated batch; the last two if
        their weights are not 0.
        """
        levels = sigma
        if self.settings.count_given:
            batch = batch._replace(given=None)
        if self.settings.first_frame_share:
            given = draw_first_frames(batch.latents.shape, self.settings.first_frame_share, generator)
            batch, levels = give_latents(batch, given.to(sigma.device), sigma)
        noisy = add_noise(batch.latents, noise, levels)
        velocity = denoiser.velocity(noisy, sigma, batch.context, extra=batch.extra).velocity
        temporal = self._compute_temporal_loss(
            velocity, velocity_target(batch.latents, noise), sigma, batch, generator
        )
        losses = {"temporal": temporal}
        if self.flow is not None:
            x0 = x0_from_velocity(noisy, velocity, levels)
            losses["mora"] = self._compute_mora_loss(self.flow, x0, batch, sigma, generator)
        if self.settings.preserve_weight:
            losses[PRESERVE] = self._compute_preservation_loss(denoiser, noisy, velocity, sigma, batch)
        return losses

    def _compute_preservation_loss(
        self, denoiser: Denoiser, noisy: Tensor, velocity: Tensor, sigma: Tensor, batch: MotionSample
    ) -> Tensor:
        """Return the change `B` that the LoRA makes to the prediction outside of the masks, or, where there
        are none, without a prompt.
        """
        assert self.base is not None  # because the training loop sets it
        context, outside = batch.context, None
        if batch.mask_latent is None:
            context = torch.zeros_like(batch.context)
            velocity = denoiser.velocity(noisy, sigma, context, extra=batch.extra).velocity
        else:
            outside = 1 - batch.mask_latent
        kept = self.base.predict(noisy, sigma, context, batch.extra).velocity
        return preservation_loss(velocity, kept, outside)

    def _compute_temporal_loss(
        self,
        velocity: Tensor,
        target: Tensor,
        sigma: Tensor,
        sample: MotionSample,
        generator: torch.Generator,
    ) -> Tensor:
        batch, _, frames = velocity.shape[:3]
        anchor = None
        if self.settings.debias:
            anchor = draw_anchors(batch, frames, sample.given, generator).to(velocity.device)
        masks = sample.given, sample.mask_latent
        loss = temporal_loss(velocity, target, anchor, *masks)
        if self.settings.difference_weight:
            loss = loss + self.settings.difference_weight * compute_difference_loss(velocity, target, *masks)
        if self.settings.weighted_velocity:
            loss = loss * velocity_weight(sigma, self.shift, self.noise_range)
        return loss

    def _compute_mora_loss(
        self,
        flow: FlowComparison,
        x0: Tensor,
        batch: MotionSample,
        sigma: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the flow loss `B` times its weight; samples of weight 0 are not decoded.

        x0 are the predicted clean latents `B C f h w`.
        """
        windows = self._draw_windows(batch.name, x0.shape[2], generator)
        weight = flow_weight(sigma, self.settings.flow_weight, self.shift, self.noise_range).to(x0.dtype)
        # With 'none' all weights are 1, and to look them up would wait for the device.
        plain = self.settings.flow_weight == "none"
        counted = range(len(windows)) if plain else weight.nonzero()[:, 0].tolist()
        # A sample is decoded once for each of its windows, and its loss is the mean over them.
        pairs = [(index, window) for index in counted for window in windows[index]]
        if not pairs:
            return torch.zeros_like(weight)
        indices = [index for index, _ in pairs]
        weight_px = None if batch.flow_weight_px is None else batch.flow_weight_px[indices]
        losses = compute_flow_loss(
            x0[indices], batch.reference_flow[indices], flow, [window for _, window in pairs], weight_px
        )
        sums = list(torch.zeros_like(weight))
        for index, loss in zip(indices, losses.to(weight), strict=True):
            sums[index] = sums[index] + loss / len(windows[index])
        return weight * torch.stack(sums)

    def _draw_windows(
        self, names: Sequence[str], latents: int, generator: torch.Generator
    ) -> list[list[DecodeWindow]]:
        """Draw `windows_per_step` windows of each sample's clip; `latents` is the clip's length.

        All windows are equally likely, and those of one sample are spread evenly over the clip. Without
        windows it is the whole clip.
        """
        by_clip = self.windows_by_clip or {}
        windows_by_sample = [by_clip.get(name) or take_whole_clip(latents) for name in names]
        drawn = torch.rand(len(names), generator=generator).tolist()
        return [
            spread_evenly(windows, int(share * len(windows)), self.settings.windows_per_step)
            for windows, share in zip(windows_by_sample, drawn, strict=True)
        ]
