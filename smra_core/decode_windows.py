"""Windows of a clip, and how decoding starts in the middle of it.

A step that looks at a window needs the decoder only there. WAN's decoder is causal and remembers about two
latents, so it is started a little before the window, from what the reference clip itself would have left it:
the predicted clip is close to the reference, and much closer to it than to a clip that begins there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .pixel_gradient import StreamingDecoder, Stretch, put_away


def windows_of(latents: int, size: int) -> list[range]:
    """Latents 1 to the last, shared out into the fewest windows of at most `size`, as equal as may be.

    Latent 0 is a lone frame and ends no pair. Every other latent is in one window, so that a window drawn
    evenly shows every pair of frames equally often.
    """
    moving = latents - 1
    count = -(-moving // size)
    borders = [1 + moving * i // count for i in range(count + 1)]
    return [range(*border) for border in zip(borders[:-1], borders[1:], strict=True)]


def whole_clip(latents: int) -> list[Stretch]:
    return [Stretch(range(latents))]


@torch.no_grad()
def warm_stretches(reference: Tensor, decoder: StreamingDecoder, size: int, context: int) -> list[Stretch]:
    """One stretch for each window of a clip, with `context` latents decoded before it.

    `reference` are the clip's own latents `16 f h w`; the states that they leave where a stretch begins are
    kept in host memory. The stretches' losses, drawn evenly, estimate the whole clip's without bias if
    context reaches back to its start.
    """
    latents = reference.shape[1]
    windows = windows_of(latents, size)
    firsts = [max(window.start - context, 0) for window in windows]
    pasts = _states_before(reference, decoder, firsts)
    weight = len(windows) / (latents - 1)
    return [
        Stretch(window, first, past, len(window) * weight)
        for window, first, past in zip(windows, firsts, pasts, strict=True)
    ]


def _states_before(reference: Tensor, decoder: StreamingDecoder, firsts: Sequence[int]) -> list:
    past, kept = None, {0: None}
    for index in range(max(firsts)):
        _, past = decoder.step(reference[None, :, index : index + 1], past)
        if index + 1 in firsts:
            kept[index + 1] = put_away(past)
    return [kept[first] for first in firsts]
