"""Windows of a clip, and the decoder state from which decoding starts in the middle of it.

A step that compares a window needs to decode only there. WAN's decoder is causal and its state reaches back
about two latents, so decoding starts a few latents before the window, with the decoder state of the reference
clip at that latent: the predicted clip is close to the reference, much closer than to a clip that begins
there. The reference's states are known for every latent and every stage, so the large stages start later
than the small ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .state import DecoderState, offload
from .wan_decoder import WanVideoDecoder


class DecodeWindow(NamedTuple):
    """The part of a clip that a training step decodes and compares."""

    latents: range
    """Latents whose frames are the second frame of a compared pair."""
    start: int = 0
    """First latent that is decoded. All decoded latents get a gradient."""
    state: DecoderState | None = None
    """Decoder state before `start`, held constant. None at the start of a clip only."""
    small_stages_only: int = 0
    """Number of leading latents that run through the small decoder stages only, to warm up their state; the
    large stages, nearly all of the cost, start after them. `state` holds what each stage starts from.
    """
    weight: float = 1.0
    """Factor of the window's mean loss: windows of different lengths need it to estimate the clip's mean."""


def split_into_windows(latents: int, size: int) -> list[range]:
    """Share out latents 1 to the last into the fewest windows of at most `size`, as equal as possible.

    Latent 0 is a single frame and ends no pair. Every other latent is in one window, so that a window drawn
    with equal chances shows every pair of frames equally often.
    """
    moving = latents - 1
    count = -(-moving // size)
    borders = [1 + moving * i // count for i in range(count + 1)]
    return [range(*border) for border in zip(borders[:-1], borders[1:], strict=True)]


def take_whole_clip(latents: int) -> list[DecodeWindow]:
    """Return the one window that is the whole clip."""
    return [DecodeWindow(range(latents))]


def spread_evenly(windows: Sequence[DecodeWindow], first: int, count: int) -> list[DecodeWindow]:
    """Return `count` different windows at equal distances, from number `first` on and around the end of the
    clip; all of them if there are no more. Drawn with every `first` equally likely, so is every window.
    """
    count = min(count, len(windows))
    return [windows[(first + len(windows) * step // count) % len(windows)] for step in range(count)]


@torch.no_grad()
def warm_windows(reference: Tensor, decoder: WanVideoDecoder, size: int, warmup: int) -> list[DecodeWindow]:
    """Return the windows of a clip, each with `warmup` latents decoded before it.

    Half of the warm-up, rounded down, is decoded at the small stages only. `reference` are the clip's own
    latents `C f h w`; their decoder states where a window's decoding starts are kept in host memory.
    The windows' losses, drawn with equal chances, estimate the whole clip's without bias if the warm-up
    reaches back to its start.
    """
    windows = split_into_windows(reference.shape[1], size)
    share = len(windows) / (reference.shape[1] - 1)
    cold = [DecodeWindow(window, weight=len(window) * share) for window in windows]
    starts = [max(window.start - warmup, 0) for window in windows]
    depths = [warmup // 2 if start else 0 for start in starts]
    places = {start + skip for start, depth in zip(starts, depths, strict=True) for skip in (0, depth)} - {0}
    states = _decode_states(reference, decoder, places)
    return [
        window._replace(
            start=start,
            state=decoder.join_states(states[start], states[start + depth]),
            small_stages_only=depth,
        )
        if start
        else window
        for window, start, depth in zip(cold, starts, depths, strict=True)
    ]


def _decode_states(
    reference: Tensor, decoder: WanVideoDecoder, places: set[int]
) -> dict[int, DecoderState | None]:
    """Return the decoder state before each latent in `places`, in host memory."""
    state, kept = None, {}
    for index in range(max(places, default=0)):
        _, state = decoder.step(reference[None, :, index : index + 1], state)
        if index + 1 in places:
            kept[index + 1] = offload(state)
    return kept
