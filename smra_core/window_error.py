"""How far a decoded window is from the same frames of the whole clip, by the latents decoded before it.

The answer depends on the decoder's weights and on the clip, so it is measured on the user's own:

    python -m smra_core.window_error CLIP --model MODEL [--noise 0.1 0.3]
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .decode_windows import windows_of
from .frozen_blocks import Past
from .mora import MotionSettings
from .motion_clip import read_motion_clip
from .pixel_gradient import StreamingDecoder
from .wan import frames_of_latent

CONTEXTS = range(5)


class WindowError(NamedTuple):
    """Of the pixels of windows: root mean square error over the pixels' deviation."""

    context: int
    warm: float
    """Started from what the reference clip left."""
    cold: float
    """Started as if the clip began there; not a number where that shows too few frames."""


@torch.no_grad()
def window_errors(
    decoder: StreamingDecoder, reference: Tensor, predicted: Tensor, size: int
) -> list[WindowError]:
    """For each context, over all windows of `size` latents that are not decoded from the clip's start.

    `reference` and `predicted` are latents `16 f h w` of the clip and of what a model makes of it.
    """
    whole = torch.cat([*_in_steps(decoder, predicted)], 2)
    windows = windows_of(predicted.shape[1], size)
    found: dict[int, list[tuple[float, float]]] = {context: [] for context in CONTEXTS}
    past = None
    for first in range(reference.shape[1]):
        for context in CONTEXTS if first else ():
            for window in windows:
                if window.start - context == first:
                    found[context].append(_errors(decoder, predicted, whole, first, window, past))
        _, past = decoder.step(reference[None, :, first : first + 1], past)
    return [WindowError(context, *_over_windows(pairs)) for context, pairs in found.items() if pairs]


def _in_steps(decoder: StreamingDecoder, latents: Tensor) -> Iterator[Tensor]:
    past = None
    for latent in latents[None].split(1, 2):
        pixels, past = decoder.step(latent, past)
        yield pixels


def _errors(
    decoder: StreamingDecoder, predicted: Tensor, whole: Tensor, first: int, window: range, past: Past
) -> tuple[float, float]:
    """Warm and cold error of one window."""
    latents = predicted[None, :, first : window.stop]
    frames = range(frames_of_latent(window.start).start, frames_of_latent(window.stop - 1).stop)
    target = whole[:, :, frames.start : frames.stop].float()

    def error(start: Past | None) -> float:
        pixels, _ = decoder.step(latents, start)
        if pixels.shape[2] < len(frames):
            return math.nan
        return ((pixels[:, :, -len(frames) :].float() - target).square().mean() / target.var()).sqrt().item()

    return error(past), error(None)


def _over_windows(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    warm, cold = (
        math.sqrt(sum(error**2 for error in side) / len(pairs)) for side in zip(*pairs, strict=True)
    )
    return warm, cold


def table(errors: Sequence[WindowError]) -> str:
    rows = [f"{error.context:7d} {error.warm:7.2%} {error.cold:7.2%}" for error in errors]
    return "\n".join([f"{'context':>7} {'warm':>7} {'cold':>7}", *rows])


def main(argv: Sequence[str] | None = None) -> None:
    from .cli import _add_model, workplace_from

    defaults = MotionSettings()
    parser = argparse.ArgumentParser(prog="python -m smra_core.window_error")
    parser.add_argument("clip", type=Path, help="the clip that a motion LoRA is to learn")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.1, 0.3],
        help="how far the model's prediction is off, in deviations of the latents (default: 0.1 0.3)",
    )  # fmt: skip
    for name in ("width", "height", "frames", "window"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    _add_model(parser)
    args = parser.parse_args(argv)
    workplace = workplace_from(args)
    clip = read_motion_clip(args.clip, (args.width, args.height), args.frames)
    (latents,) = workplace.latents([clip.frames])
    latents = latents.to(workplace.device)
    decoder = workplace.frozen_decoder()
    for level in args.noise:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
        errors = window_errors(decoder, latents, latents + level * noise, args.window)
        sys.stdout.write(f"prediction off by {level} deviations, windows of {args.window}\n{table(errors)}\n")


if __name__ == "__main__":
    main()
