"""The gradient that a loss on the optical flow of decoded pixels sends to latents, in little memory.

Decoder and flow net are far larger in activations than the DiT, and both are frozen. So the loss and its
gradient with respect to the latents are computed at once, the flow a few frame pairs at a time, and only that
gradient is kept for the DiT's backward pass. It is exact for the part of the clip that is decoded.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..wan.spec import frames_of_latent, pixel_frames
from .decoder_blocks import Past

PAIRS_AT_ONCE = 4
"""Frame pairs whose flow activations are alive together: 0.84 GB each with SEA-RAFT-M on 576x320 pixels."""

PairFlows = Callable[[Tensor], Tensor]
"""Frames `F 3 H W` in 0..255 to the flow of adjacent pairs `F-1 2 H W`, differentiable."""
FlowLoss = Callable[[Tensor, Tensor], Tensor]
"""Flow and reference, `P 2 H W` each, to their mean loss over pairs, a scalar."""


class StreamingDecoder(Protocol):
    def step(self, latents: Tensor, past: Past | None, /) -> tuple[Tensor, Past]:
        """Pixels `B 3 n H W` in [-1, 1] of some latents `B 16 k h w`, and what they leave to the next.

        A past in host memory is fetched as it is needed. A decoder of stretches with `shallow` latents takes
        their number as a third argument.
        """
        ...

    def end(self, latents: Tensor, past: Past | None, /) -> Tensor:
        """The pixels alone, for latents that nothing comes after."""
        ...


class FlowObjective(NamedTuple):
    """What decoded pixels are held to, and how the gradient gets back to the latents."""

    decoder: StreamingDecoder
    pair_flows: PairFlows
    loss: FlowLoss
    latents_at_once: int = 0
    """Latents whose decoding is one graph; 0 is all. Fewer need less memory and one more forward pass: the
    gradient is then followed from step to step, through the states in between, which wait in host memory.
    """


class Stretch(NamedTuple):
    """What of a clip is decoded and compared in a step."""

    counted: range
    """Latents whose frames are the second of a compared pair."""
    first: int = 0
    """Where decoding starts. All that is decoded gets a gradient."""
    past: Past | None = None
    """What the decoder remembers before `first`; held still. None at the start of a clip only."""
    shallow: int = 0
    """Latents at the beginning of which only the small stages are decoded, to remind those of the past; the
    large stages, nearly all of the cost, start after them. `past` holds what each stage starts from.
    """
    weight: float = 1.0
    """Of the mean over its pairs: an estimate of the whole clip's mean needs it where windows differ."""


def streamed_loss(
    latents: Tensor, reference: Tensor, objective: FlowObjective, stretches: Sequence[Stretch] | None = None
) -> Tensor:
    """Loss `B` of the flow of decoded latents `B 16 f h w` against a reference flow `B F-1 2 H W`.

    A stretch for each sample says what is compared; without, the whole clip is. ValueError when reference and
    latents differ in length, or when a stretch holds no pair or lies outside of the clip.
    """
    stretches = [Stretch(range(latents.shape[2]))] * len(latents) if stretches is None else stretches
    for stretch in stretches:
        _check(latents, reference, stretch, objective)
    return _StreamedLoss.apply(latents, reference, objective, stretches)


def _check(latents: Tensor, reference: Tensor, stretch: Stretch, objective: FlowObjective) -> None:
    frames = pixel_frames(latents.shape[2])
    if reference.shape[1] != frames - 1:
        raise ValueError(
            f"{latents.shape[2]} latents decode to {frames} frames and {frames - 1} pairs, but the reference "
            f"flow has {reference.shape[1]}. Compute it from the clip that the latents were encoded from."
        )
    counted, first = stretch.counted, stretch.first
    if not 0 <= counted.start < counted.stop <= latents.shape[2] or counted.stop == 1:
        raise ValueError(
            f"Latents {counted.start} to {counted.stop - 1} of {latents.shape[2]} hold no pair of frames. "
            "Give a window inside the clip that has a latent after the first."
        )
    if not 0 <= first + stretch.shallow <= max(counted.start - 1, 0):
        raise ValueError(
            f"Decoding from latent {first + stretch.shallow} cannot show the first pair of latent "
            f"{counted.start}, "
            f"which begins in the latent before. Start at latent {max(counted.start - 1, 0)} or earlier."
        )
    if stretch.shallow and objective.latents_at_once:
        raise ValueError(
            f"A stretch with {stretch.shallow} shallow latents is decoded in one graph, not in steps of "
            f"{objective.latents_at_once}. Set latents_at_once to 0, or shallow to 0."
        )
    if (stretch.past is None) != (first == 0):
        raise ValueError(
            f"Decoding from latent {first} {'needs' if first else 'must not have'} a past. Give what the "
            "decoder left after the latent before, and none at the start of a clip."
        )


class _StreamedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents, reference, objective, stretches):
        per_sample = [
            loss_and_gradient(sample[None].detach(), flow, objective, stretch)
            for sample, flow, stretch in zip(latents, reference, stretches, strict=True)
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
    latents: Tensor, reference: Tensor, objective: FlowObjective, stretch: Stretch
) -> tuple[Tensor, Tensor]:
    """Loss (scalar) of one sample `1 16 f h w` against `F-1 2 H W`, and its gradient `1 16 f h w`."""
    decoded = slice(stretch.first, stretch.counted.stop)
    begin = max(frames_of_latent(stretch.counted.start).start - 1, 0)
    pairs = reference[begin : frames_of_latent(stretch.counted.stop - 1).stop - 1]
    skipped = begin - frames_of_latent(stretch.first + stretch.shallow).start

    def compare(pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of all decoded pixels, and its gradient; frames before the first pair get none."""
        loss, pull = flow_loss_and_gradient(pixels[:, :, skipped:], pairs, objective)
        return loss, torch.nn.functional.pad(pull, (0, 0, 0, 0, skipped, 0))

    route = _in_steps if objective.latents_at_once else _in_one_graph
    loss, part = route(latents[:, :, decoded], stretch, objective, compare)
    gradient = torch.zeros_like(latents)
    gradient[:, :, decoded] = part
    return loss * stretch.weight, gradient * stretch.weight


Comparison = Callable[[Tensor], tuple[Tensor, Tensor]]


def _in_one_graph(
    latents: Tensor, stretch: Stretch, objective: FlowObjective, compare: Comparison
) -> tuple[Tensor, Tensor]:
    inputs = latents.detach().requires_grad_()
    depth = (stretch.shallow,) if stretch.shallow else ()
    with torch.enable_grad():
        pixels = objective.decoder.end(inputs, stretch.past, *depth)
    loss, pull = compare(pixels.detach())
    return loss, torch.autograd.grad(pixels, inputs, pull)[0]


def _in_steps(
    latents: Tensor, stretch: Stretch, objective: FlowObjective, compare: Comparison
) -> tuple[Tensor, Tensor]:
    """Decode without a graph, then walk back with the graph of one step at a time."""
    pieces = list(latents.split(objective.latents_at_once, 2))
    pixels, shelf = decoded_in_steps(pieces, stretch.past, objective.decoder)
    frames = [part.shape[2] for part in pixels]
    pixels = torch.cat(pixels, 2)
    loss, pull = compare(pixels)
    del pixels
    return loss, backpropagated(pieces, shelf, pull.split(frames, 2), objective.decoder)


@torch.no_grad()
def decoded_in_steps(
    pieces: Sequence[Tensor], past: Past | None, decoder: StreamingDecoder
) -> tuple[list[Tensor], list[Past | None]]:
    """Pixels of each piece of latents, and what the decoder knew before it, put away in host memory."""
    pixels, shelf = [], []
    for piece in pieces[:-1]:
        shelf.append(put_away(past))
        part, past = decoder.step(piece, past)
        pixels.append(part)
    return [*pixels, decoder.end(pieces[-1], past)], [*shelf, put_away(past)]


def put_away(past: Past | None) -> Past | None:
    return past and tuple(tensor.cpu() for tensor in past)


def taken_back(past: Past, like: Tensor) -> list[Tensor]:
    return [tensor.to(like.device).detach().requires_grad_() for tensor in past]


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


def backpropagated(
    pieces: Sequence[Tensor], shelf: list[Past | None], pulls: Sequence[Tensor], decoder: StreamingDecoder
) -> Tensor:
    """Gradient `1 16 n h w` of the latents, from the gradients of their pixels, last piece first.

    Only one piece's graph is alive; to the piece before it hands the gradient of what that one left. Takes
    the states off the shelf, to free them.
    """
    gradients: list[Tensor] = []
    later: list[Tensor] = []
    for latents, pull in zip(reversed(pieces), reversed(pulls), strict=True):
        gradient, later = _one_back(latents, shelf.pop(), pull, later, decoder)
        gradients.insert(0, gradient)
    return torch.cat(gradients, 2)


def _one_back(
    latents: Tensor, past: Past | None, pull: Tensor, later: list[Tensor], decoder: StreamingDecoder
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of one piece's latents and of its past, from those of its pixels and of what it leaves."""
    inputs = [latents.detach().requires_grad_(), *taken_back(past or (), latents)]
    before = tuple(inputs[1:]) or None
    with torch.enable_grad():
        pixels, after = decoder.step(inputs[0], before) if later else (decoder.end(inputs[0], before), ())
    # The clip's first latent leaves some black frames, which lead back to nothing.
    ends = [
        (out, end) for out, end in zip([pixels, *after], [pull, *later], strict=False) if out.requires_grad
    ]
    gradient, *earlier = torch.autograd.grad([out for out, _ in ends], inputs, [end for _, end in ends])
    return gradient, earlier
