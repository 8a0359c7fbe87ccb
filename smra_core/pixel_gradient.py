"""The gradient that a loss on the optical flow of decoded pixels sends to latents, in little memory.

Decoder and flow net are far larger in activations than the DiT, and both are frozen. So the loss and its
gradient with respect to the latents are computed at once, a few frame pairs and one latent at a time, and
only that gradient is kept for the DiT's backward pass. It is exact: backpropagation through time over the
decoder's steps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from .streaming_decode import Past
from .wan import frames_of_latent, pixel_frames

PAIRS_AT_ONCE = 4
"""Frame pairs whose flow activations are alive together: 3.4 GB with SEA-RAFT-M at 576x320."""

PairFlows = Callable[[Tensor], Tensor]
"""Frames `F 3 H W` in 0..255 to the flow of adjacent pairs `F-1 2 H W`, differentiable."""
FlowLoss = Callable[[Tensor, Tensor], Tensor]
"""Flow and reference, `P 2 H W` each, to their mean loss over pairs, a scalar."""


class StreamingDecoder(Protocol):
    def step(self, latent: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Pixels `B 3 n H W` of one latent `B 16 1 h w`, and what it leaves to the next."""
        ...


class FlowObjective(NamedTuple):
    """What decoded pixels are held to."""

    decoder: StreamingDecoder
    pair_flows: PairFlows
    loss: FlowLoss


class DecodedLatent(NamedTuple):
    """A latent `1 16 1 h w`, what the decoder knew before it, and the pixels `1 3 n H W` that came out."""

    latent: Tensor
    past: Past | None
    pixels: Tensor


def streamed_loss(
    latents: Tensor, reference: Tensor, objective: FlowObjective, window: range | None = None
) -> Tensor:
    """Loss `B` of the flow of decoded latents `B 16 f h w` against a reference flow `B F-1 2 H W`.

    A window compares only the pairs whose second frame is one of its latents' frames. Latents before it are
    decoded, as the window looks back on them, but get no gradient; later ones are not decoded. ValueError
    when reference and latents differ in length, or when the window holds no pair.
    """
    window = range(latents.shape[2]) if window is None else window
    _check(latents, reference, window)
    return _StreamedLoss.apply(latents, reference, objective, window)


def _check(latents: Tensor, reference: Tensor, window: range) -> None:
    frames = pixel_frames(latents.shape[2])
    if reference.shape[1] != frames - 1:
        raise ValueError(
            f"{latents.shape[2]} latents decode to {frames} frames and {frames - 1} pairs, but the reference "
            f"flow has {reference.shape[1]}. Compute it from the clip that the latents were encoded from."
        )
    if not 0 <= window.start < window.stop <= latents.shape[2] or window.stop == 1:
        raise ValueError(
            f"Latents {window.start} to {window.stop - 1} of {latents.shape[2]} hold no pair of frames. "
            "Give a window inside the clip that has a latent after the first."
        )


class _StreamedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents, reference, objective, window):
        per_sample = [
            loss_and_gradient(sample[None].detach(), flow, objective, window)
            for sample, flow in zip(latents, reference, strict=True)
        ]
        losses, gradients = zip(*per_sample, strict=True)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, losses_gradient):
        (gradient,) = ctx.saved_tensors
        return losses_gradient.to(gradient.dtype).view(-1, 1, 1, 1, 1) * gradient, None, None, None


def loss_and_gradient(
    latents: Tensor, reference: Tensor, objective: FlowObjective, window: range
) -> tuple[Tensor, Tensor]:
    """Loss (scalar) of one sample `1 16 f h w` against `F-1 2 H W`, and its gradient `1 16 f h w`."""
    lead, steps = decoded_window(latents, objective.decoder, window)
    pixels = torch.cat([*lead, *(step.pixels for step in steps)], 2)
    last = frames_of_latent(window.stop - 1).stop
    loss, pull = flow_loss_and_gradient(pixels, reference[last - pixels.shape[2] : last - 1], objective)
    pulls = pull[:, :, len(lead) :].split([step.pixels.shape[2] for step in steps], 2)
    gradient = torch.zeros_like(latents)
    gradient[:, :, window.start : window.stop] = backpropagated(steps, pulls, objective.decoder)
    return loss, gradient


@torch.no_grad()
def decoded_window(
    latents: Tensor, decoder: StreamingDecoder, window: range
) -> tuple[list[Tensor], list[DecodedLatent]]:
    """The last frame before the window, if there is one, and every step of the window."""
    past, lead, steps = None, [], []
    for index, latent in enumerate(latents[:, :, : window.stop].split(1, 2)):
        pixels, after = decoder.step(latent, past)
        if index in window:
            steps.append(DecodedLatent(latent, past, pixels))
        else:
            lead = [pixels[:, :, -1:]]
        past = after
    return lead, steps


def flow_loss_and_gradient(
    pixels: Tensor, reference: Tensor, objective: FlowObjective
) -> tuple[Tensor, Tensor]:
    """Mean loss over all pairs of `1 3 F H W` in [-1, 1], and its gradient; a few pairs at a time."""
    frames = rearrange(pixels, "1 c f h w -> f c h w")
    # In half precision 0..255 would round to whole grey levels and more.
    frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
    loss, gradient = frames.new_zeros(()), torch.zeros_like(frames)
    for start in range(0, len(reference), PAIRS_AT_ONCE):
        pairs = slice(start, min(start + PAIRS_AT_ONCE, len(reference)))
        chunk = frames[start : pairs.stop + 1].detach().requires_grad_()
        with torch.enable_grad():
            flow = objective.pair_flows((chunk + 1) * 127.5)  # not clamped: that would stop the gradient
            part = objective.loss(flow, reference[pairs].to(flow)) * (len(flow) / len(reference))
        gradient[start : pairs.stop + 1] += torch.autograd.grad(part, chunk)[0]
        loss = loss + part.detach()
    return loss, rearrange(gradient, "f c h w -> 1 c f h w").to(pixels.dtype)


def backpropagated(steps: list[DecodedLatent], pulls: Sequence[Tensor], decoder: StreamingDecoder) -> Tensor:
    """Gradient `1 16 n h w` of the steps' latents, from the gradients of their pixels, last step first.

    Only one step's graph is alive; to the step before it hands the gradient of what that one left. Takes the
    steps off the list, to free what they hold.
    """
    gradients: list[Tensor] = []
    later: list[Tensor] = []
    for pull in reversed(pulls):
        latent, past, _ = steps.pop()
        inputs = [tensor.detach().requires_grad_() for tensor in (latent, *(past or ()))]
        with torch.enable_grad():
            pixels, after = decoder.step(inputs[0], tuple(inputs[1:]) or None)
        # The clip's first latent leaves some black frames, which lead back to nothing.
        ends = [
            (out, end)
            for out, end in zip([pixels, *after], [pull, *later], strict=False)
            if out.requires_grad
        ]
        gradient, *later = torch.autograd.grad([out for out, _ in ends], inputs, [end for _, end in ends])
        gradients.insert(0, gradient)
    return torch.cat(gradients, 2)
