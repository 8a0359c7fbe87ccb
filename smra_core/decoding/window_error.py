"""Error of decoded windows against the same frames of the whole clip, by the latents decoded before a window.

The error depends on the decoder's weights and on the clip, so `python -m smra_core window-error` measures it
on the user's own.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..wan.spec import frames_of_latent
from .wan_decoder import WanVideoDecoder
from .windows import DecodeWindow, warm_windows

CONTEXTS = range(5)
"""Numbers of latents decoded before a window that are compared."""


class WindowError(NamedTuple):
    """Root mean square error of the pixels of windows, over the pixels' standard deviation."""

    context: int
    """Number of latents decoded before a window."""
    warm: float
    """Error of windows that start from the decoder state of the reference clip."""
    cold: float
    """Error of windows that start as if the clip began there; not a number where that gives too few frames.
    """


@torch.no_grad()
def measure_window_errors(
    decoder: WanVideoDecoder, reference: Tensor, predicted: Tensor, size: int
) -> list[WindowError]:
    """Measure the errors for each context, over all windows of `size` latents that do not begin at the clip's
    start.

    `reference` and `predicted` are latents `C f h w` of the clip and of a model's prediction of it.
    """
    whole = torch.cat([*decoder.stream(predicted[None])], 2)
    window_errors = []
    for context in CONTEXTS:
        windows = warm_windows(reference, decoder, size, context)
        errors = [_measure_window(decoder, predicted, whole, window) for window in windows if window.start]
        if errors:
            warm, cold = zip(*errors, strict=True)
            window_errors.append(WindowError(context, _compute_rms(warm), _compute_rms(cold)))
    return window_errors


def _measure_window(
    decoder: WanVideoDecoder, predicted: Tensor, whole: Tensor, window: DecodeWindow
) -> tuple[float, float]:
    """Return the warm and the cold error of one window."""
    compared = window.latents
    latents = predicted[None, :, window.start : compared.stop]
    frames = range(frames_of_latent(compared.start).start, frames_of_latent(compared.stop - 1).stop)
    target = whole[:, :, frames.start : frames.stop].float()

    def measure_error(pixels: Tensor) -> float:
        if pixels.shape[2] < len(frames):
            return math.nan
        return ((pixels[:, :, -len(frames) :].float() - target).square().mean() / target.var()).sqrt().item()

    state = tuple(tensor.to(latents.device) for tensor in window.state or ())
    warm_pixels, _ = decoder.step(latents, state, window.small_stages_only)
    cold_pixels, _ = decoder.step(latents)
    return measure_error(warm_pixels), measure_error(cold_pixels)


def _compute_rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def _format_share(error: float) -> str:
    return f"{'-':>7}" if math.isnan(error) else f"{error:7.2%}"


def render_errors(errors: Sequence[WindowError]) -> str:
    """Render the errors as a table in plain text, one line for each context."""
    rows = [f"{error.context:7d} {_format_share(error.warm)} {_format_share(error.cold)}" for error in errors]
    return "\n".join([f"{'context':>7} {'warm':>7} {'cold':>7}", *rows])
