"""Windows of a clip, and how decoding starts in the middle of it.

A step that looks at a window needs the decoder only there. WAN's decoder is causal and remembers about two
latents, so it is started a little before the window, from what the reference clip itself would have left it:
the predicted clip is close to the reference, and much closer to it than to a clip that begins there. The
reference's states are there for every latent and every stage, so the large stages start later than the small.
"""

import torch
from torch import Tensor

from .decoder_blocks import Past
from .flow_gradient import Stretch, put_away
from .wan_decoder import FrozenDecoder


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
def warm_stretches(reference: Tensor, decoder: FrozenDecoder, size: int, context: int) -> list[Stretch]:
    """One stretch for each window of a clip, with `context` latents decoded before it.

    Half of the context, rounded down, is decoded at the small stages only. `reference` are the clip's own
    latents `16 f h w`; the states that they leave where a stretch begins are kept in host memory. The
    stretches' losses, drawn evenly, estimate the whole clip's without bias if the context reaches back to its
    start.
    """
    windows = windows_of(reference.shape[1], size)
    share = len(windows) / (reference.shape[1] - 1)
    cold = [Stretch(window, weight=len(window) * share) for window in windows]
    firsts = [max(window.start - context, 0) for window in windows]
    depths = [context // 2 if first else 0 for first in firsts]
    places = {first + skip for first, depth in zip(firsts, depths, strict=True) for skip in (0, depth)} - {0}
    states = _states_before(reference, decoder, places)
    return [
        kept._replace(
            first=first, past=decoder.joined_past(states[first], states[first + depth]), shallow=depth
        )
        if first
        else kept
        for kept, first, depth in zip(cold, firsts, depths, strict=True)
    ]


def _states_before(reference: Tensor, decoder: FrozenDecoder, places: set[int]) -> dict[int, Past]:
    past, kept = None, {}
    for index in range(max(places, default=0)):
        _, past = decoder.step(reference[None, :, index : index + 1], past)
        if index + 1 in places:
            kept[index + 1] = put_away(past)
    return kept
