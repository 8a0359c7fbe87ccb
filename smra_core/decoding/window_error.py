"""How far a decoded window is from the same frames of the whole clip, by the latents decoded before it.

The answer depends on the decoder's weights and on the clip, so it is measured on the user's own:

    python -m smra_core.window_error CLIP --model MODEL [--noise 0.1 0.3]
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.motion_clip import read_motion_clip
from ..training.mora import MotionSettings
from ..wan.spec import frames_of_latent
from .flow_gradient import Stretch
from .wan_decoder import FrozenDecoder
from .windows import warm_stretches

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
    decoder: FrozenDecoder, reference: Tensor, predicted: Tensor, size: int
) -> list[WindowError]:
    """For each context, over all windows of `size` latents that are not decoded from the clip's start.

    `reference` and `predicted` are latents `16 f h w` of the clip and of what a model makes of it.
    """
    whole = torch.cat([*decoder.stream(predicted[None])], 2)
    found = []
    for context in CONTEXTS:
        stretches = warm_stretches(reference, decoder, size, context)
        errors = [_errors(decoder, predicted, whole, stretch) for stretch in stretches if stretch.first]
        if errors:
            warm, cold = zip(*errors, strict=True)
            found.append(WindowError(context, _root_mean_square(warm), _root_mean_square(cold)))
    return found


def _errors(
    decoder: FrozenDecoder, predicted: Tensor, whole: Tensor, stretch: Stretch
) -> tuple[float, float]:
    """Warm and cold error of one window."""
    window = stretch.counted
    latents = predicted[None, :, stretch.first : window.stop]
    frames = range(frames_of_latent(window.start).start, frames_of_latent(window.stop - 1).stop)
    target = whole[:, :, frames.start : frames.stop].float()

    def error(pixels: Tensor) -> float:
        if pixels.shape[2] < len(frames):
            return math.nan
        return ((pixels[:, :, -len(frames) :].float() - target).square().mean() / target.var()).sqrt().item()

    past = tuple(tensor.to(latents.device) for tensor in stretch.past or ())
    return error(decoder.step(latents, past, stretch.shallow)[0]), error(decoder.step(latents)[0])


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def _share(error: float) -> str:
    return f"{'-':>7}" if math.isnan(error) else f"{error:7.2%}"


def table(errors: Sequence[WindowError]) -> str:
    rows = [f"{error.context:7d} {_share(error.warm)} {_share(error.cold)}" for error in errors]
    return "\n".join([f"{'context':>7} {'warm':>7} {'cold':>7}", *rows])


def main(argv: Sequence[str] | None = None) -> None:
    from ..cli import _add_model, workplace_from

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
