"""Gradient of an optical-flow loss with respect to the latents, through decoder and flow net, in little
memory.

Decoder and flow net have far larger activations than the DiT, and both are frozen. So the loss and its
gradient with respect to the latents are computed together, the flow a few frame pairs at a time, and only
that gradient is kept for the DiT's backward pass. It is exact for the part of the clip that is decoded.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..wan.spec import frames_of_latent, pixel_frames
from .state import DecoderState, StreamingDecoder, offload, reload_with_grad
from .windows import DecodeWindow

PairFlows = Callable[[Tensor], Tensor]
"""Frames `F 3 H W` in 0..255 to the flow of adjacent pairs `F-1 2 H W`, differentiable."""
FlowLoss = Callable[..., Tensor]
"""Flow and reference, `P 2 H W` each, to their mean loss over pairs, a scalar. A weight `P 1 H W` of the
pixels is a third argument where there is one.
"""
Comparison = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels `1 3 F H W` to their loss, a scalar, and its gradient, of the pixels' shape."""


class FlowComparison(NamedTuple):
    """Decoder, flow net and loss that turn latents into a flow loss."""

    decoder: StreamingDecoder
    compute_pair_flows: PairFlows
    loss: FlowLoss
    latents_at_once: int = 0
    """Number of latents that are decoded in one graph; 0 is all. Fewer need less memory and one more forward
    pass: the gradient is then passed from chunk to chunk, through the states in between, which wait in host
    memory.
    """
    pairs_per_chunk: int = 0
    """Number of frame pairs whose flow is computed in one graph; 0 is all. Fewer need less memory."""


def compute_flow_loss(
    latents: Tensor,
    reference: Tensor,
    comparison: FlowComparison,
    windows: Sequence[DecodeWindow] | None = None,
    weight_px: Tensor | None = None,
) -> Tensor:
    """Return the loss `B` of the flow of decoded latents `B C f h w` against a reference flow `B F-1 2 H W`.

    A window for each sample says what is compared; without windows, the whole clip is. `weight_px` are
    factors `B F-1 1 H W` of the pixels; all are 1 without it. ValueError when reference and latents differ in
    length, or when a window holds no pair or lies outside of the clip.
    """
    windows = [DecodeWindow(range(latents.shape[2]))] * len(latents) if windows is None else windows
    for window in windows:
        _check_window(latents, reference, window, comparison)
    return _StreamedLoss.apply(latents, reference, weight_px, comparison, windows)


def _check_window(
    latents: Tensor, reference: Tensor, window: DecodeWindow, comparison: FlowComparison
) -> None:
    frames = pixel_frames(latents.shape[2])
    if reference.shape[1] != frames - 1:
        raise ValueError(
            f"{latents.shape[2]} latents decode to {frames} frames and {frames - 1} pairs, but the reference "
            f"flow has {reference.shape[1]}. Compute it from the clip that the latents were encoded from."
        )
    compared, start, skipped = window.latents, window.start, window.small_stages_only
    if not 0 <= compared.start < compared.stop <= latents.shape[2] or compared.stop == 1:
        raise ValueError(
            f"Latents {compared.start} to {compared.stop - 1} of {latents.shape[2]} hold no pair of frames. "
            "Give a window inside the clip that has a latent after the first."
        )
    if not 0 <= start + skipped <= max(compared.start - 1, 0):
        raise ValueError(
            f"Decoding from latent {start + skipped} cannot show the first pair of latent {compared.start}, "
            f"which begins in the latent before. Start at latent {max(compared.start - 1, 0)} or earlier."
        )
    if skipped and comparison.latents_at_once:
        raise ValueError(
            f"A window with {skipped} latents at the small stages only is decoded in one graph, not in "
            f"chunks of {comparison.latents_at_once}. Set latents_at_once to 0, or small_stages_only to 0."
        )
    if (window.state is None) != (start == 0):
        raise ValueError(
            f"Decoding from latent {start} {'needs' if start else 'must not have'} a decoder state. Give the "
            "state after the latent before, and none at the start of a clip."
        )


class _StreamedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents, reference, weight_px, comparison, windows):
        weights = [None] * len(latents) if weight_px is None else weight_px
        results = [
            compute_loss_and_gradient(sample[None].detach(), flow, comparison, window, weight)
            for sample, flow, window, weight in zip(latents, reference, windows, weights, strict=True)
        ]
        losses, gradients = zip(*results, strict=True)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        return grad_output.to(gradient.dtype).view(-1, 1, 1, 1, 1) * gradient, None, None, None, None


def compute_loss_and_gradient(
    latents: Tensor,
    reference: Tensor,
    comparison: FlowComparison,
    window: DecodeWindow,
    weight_px: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of one sample `1 C f h w` against a flow `F-1 2 H W`, and its gradient.

    `weight_px` are factors `F-1 1 H W` of the pixels.
    """
    decoded = slice(window.start, window.latents.stop)
    begin = max(frames_of_latent(window.latents.start).start - 1, 0)
    end = frames_of_latent(window.latents.stop - 1).stop - 1
    pairs, weights = reference[begin:end], None if weight_px is None else weight_px[begin:end]
    skipped = begin - frames_of_latent(window.start + window.small_stages_only).start

    def compare(pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compare all decoded pixels; frames before the first pair get no gradient."""
        loss, grad_pixels = compute_flow_loss_and_gradient(pixels[:, :, skipped:], pairs, comparison, weights)
        return loss, torch.nn.functional.pad(grad_pixels, (0, 0, 0, 0, skipped, 0))

    decode = _decode_in_chunks if comparison.latents_at_once else _decode_in_one_graph
    loss, part = decode(latents[:, :, decoded], window, comparison, compare)
    gradient = torch.zeros_like(latents)
    gradient[:, :, decoded] = part
    return loss * window.weight, gradient * window.weight


def _decode_in_one_graph(
    latents: Tensor, window: DecodeWindow, comparison: FlowComparison, compare: Comparison
) -> tuple[Tensor, Tensor]:
    inputs = latents.detach().requires_grad_()
    depth = (window.small_stages_only,) if window.small_stages_only else ()
    with torch.enable_grad():
        pixels = comparison.decoder.finish(inputs, window.state, *depth)
    loss, grad_pixels = compare(pixels.detach())
    return loss, torch.autograd.grad(pixels, inputs, grad_pixels)[0]


def _decode_in_chunks(
    latents: Tensor, window: DecodeWindow, comparison: FlowComparison, compare: Comparison
) -> tuple[Tensor, Tensor]:
    """Decode without a graph, then walk back with the graph of one chunk at a time."""
    chunks = list(latents.split(comparison.latents_at_once, 2))
    pixels, states = decode_chunks(chunks, window.state, comparison.decoder)
    frames = [part.shape[2] for part in pixels]
    pixels = torch.cat(pixels, 2)
    loss, grad_pixels = compare(pixels)
    del pixels
    return loss, backpropagate_chunks(chunks, states, grad_pixels.split(frames, 2), comparison.decoder)


@torch.no_grad()
def decode_chunks(
    chunks: Sequence[Tensor], state: DecoderState | None, decoder: StreamingDecoder
) -> tuple[list[Tensor], list[DecoderState | None]]:
    """Return the pixels of each chunk of latents, and the decoder state before it, in host memory."""
    pixels, states = [], []
    for chunk in chunks[:-1]:
        states.append(offload(state))
        part, state = decoder.step(chunk, state)
        pixels.append(part)
    return [*pixels, decoder.finish(chunks[-1], state)], [*states, offload(state)]


def compute_flow_loss_and_gradient(
    pixels: Tensor, reference: Tensor, comparison: FlowComparison, weight_px: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean loss over all pairs of `1 3 F H W` in [-1, 1], and its gradient.

    Processes `comparison.pairs_per_chunk` pairs at a time. `weight_px` are factors `F-1 1 H W` of the pixels.
    """
    frames = rearrange(pixels, "1 c f h w -> f c h w")
    # In half precision 0..255 would round to whole gray levels and more.
    frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
    loss, gradient = frames.new_zeros(()), torch.zeros_like(frames)
    pairs_per_chunk = comparison.pairs_per_chunk or len(reference)
    for start in range(0, len(reference), pairs_per_chunk):
        pairs = slice(start, min(start + pairs_per_chunk, len(reference)))
        chunk = frames[start : pairs.stop + 1].detach().requires_grad_()
        with torch.enable_grad():
            flow = comparison.compute_pair_flows(
                (chunk + 1) * 127.5
            )  # not clamped: that would stop the gradient
            weight = () if weight_px is None else (weight_px[pairs].to(flow),)
            part = comparison.loss(flow, reference[pairs].to(flow), *weight) * (len(flow) / len(reference))
        gradient[start : pairs.stop + 1] += torch.autograd.grad(part, chunk)[0]
        loss = loss + part.detach()
    return loss, rearrange(gradient, "f c h w -> 1 c f h w").to(pixels.dtype)


def backpropagate_chunks(
    chunks: Sequence[Tensor],
    states: list[DecoderState | None],
    grad_pixels: Sequence[Tensor],
    decoder: StreamingDecoder,
) -> Tensor:
    """Return the gradient `1 C n h w` of the latents, from the gradients of their pixels.

    Keeps the graph of one chunk at a time, the last first, and passes the gradient of its state on to the
    chunk before. Empties `states` on the way, to free them.
    """
    gradients: list[Tensor] = []
    grad_state: list[Tensor] = []
    for latents, grad_output in zip(reversed(chunks), reversed(grad_pixels), strict=True):
        gradient, grad_state = _backpropagate_chunk(latents, states.pop(), grad_output, grad_state, decoder)
        gradients.insert(0, gradient)
    return torch.cat(gradients, 2)


def _backpropagate_chunk(
    latents: Tensor,
    state: DecoderState | None,
    grad_output: Tensor,
    grad_state: list[Tensor],
    decoder: StreamingDecoder,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of one chunk's latents and of the state before it.

    They come from the gradients of its pixels and of the state after it.
    """
    inputs = [latents.detach().requires_grad_(), *reload_with_grad(state or (), latents)]
    before = tuple(inputs[1:]) or None
    with torch.enable_grad():
        pixels, after = (
            decoder.step(inputs[0], before) if grad_state else (decoder.finish(inputs[0], before), ())
        )
    # The first latent's state starts with zero padding, which needs no gradient.
    ends = [
        (output, gradient)
        for output, gradient in zip([pixels, *after], [grad_output, *grad_state], strict=False)
        if output.requires_grad
    ]
    grad_latents, *grad_before = torch.autograd.grad(
        [output for output, _ in ends], inputs, [gradient for _, gradient in ends]
    )
    return grad_latents, grad_before
