"""window-error: measure how far decoded windows of a clip are from the whole clip."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.motion_clip import read_motion_clip
from ..decoding.wan_decoder import WanVideoDecoder
from ..decoding.window_error import WindowError, measure_window_errors, render_errors
from ..miniature.weight_paths import SEA_RAFT_FILE
from ..training.motion_settings import MotionSettings
from ..training.window_gradient import WindowGradient, measure_clip_gradients, render_gradients
from ..wan.settings import NOT_NEGATIVE
from .model_options import add_model, check_weight_file, open_backend
from .options import add_json, add_option
from .settings_options import add_settings, read_settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("clip", type=Path, help="The clip that a motion LoRA is to be trained on.")
    add_option(
        parser, "--noise",
        "Standard deviations of the noise that makes a prediction of the clip's latents, in units of theirs.",
        [0.1, 0.3], "0.1 0.3", type=float, nargs="+",
    )  # fmt: skip
    add_option(
        parser, "--sea-raft",
        "SEA-RAFT weights, for the error of the gradient that a motion LoRA gets. Without them, only pixels "
        "are compared.",
        shown="the miniature's, for the miniature", type=Path,
    )  # fmt: skip
    add_option(parser, "--caption", "Caption of the clip, such as 'a person is vvt walking'.")
    add_settings(parser, MotionSettings(), ("width", "height", "frames", "window", "plan", "rank"))
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print the errors of windows, a table for each noise level, and the gradients that they give."""
    settings = read_settings(args, MotionSettings())
    if not all(NOT_NEGATIVE.holds(level) for level in args.noise):
        raise ValueError(f"--noise must be finite and at least 0, got {args.noise}. The default is 0.1 0.3.")
    check_weight_file("SEA-RAFT", "--sea-raft", args.sea_raft)
    backend = open_backend(args)
    clip = read_motion_clip(
        args.clip,
        (settings.width, settings.height),
        settings.frames,
        caption=args.caption,
        fps=backend.spec.latents.fps,
    )
    (latents,) = backend.encode_clips([clip.frames])
    pixels = _measure_pixels(backend.load_decoder(), latents.to(backend.device), args.noise, settings)
    sea_raft, gradients = args.sea_raft or (None if args.model else SEA_RAFT_FILE), None
    if sea_raft is not None:
        gradients = measure_clip_gradients(backend, clip, sea_raft, settings)
    print(_to_json(pixels, gradients) if args.json else _render(pixels, gradients, settings.window))


def _measure_pixels(
    decoder: WanVideoDecoder, latents: Tensor, levels: list[float], settings: MotionSettings
) -> dict[float, list[WindowError]]:
    """Return the errors of windows by the noise level, with a bar that shows the time left."""
    errors = {}
    for level in tqdm(levels, desc="windows", unit="noise level"):
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
        errors[level] = measure_window_errors(decoder, latents, latents + level * noise, settings.window)
    return errors


def _render(
    pixels: dict[float, list[WindowError]], gradients: Sequence[WindowGradient] | None, window: int
) -> str:
    lines = []
    for level, errors in pixels.items():
        lines.append(f"Noise of {level} standard deviations, windows of {window} latents:")
        lines.append(render_errors(errors))
    if gradients is not None:
        lines.append(
            "Gradient of the flow loss in a new LoRA, on the model's own predictions, against that of the "
            "whole clip:"
        )
        lines.append(render_gradients(gradients))
    return "\n".join(lines)


def _to_json(pixels: dict[float, list[WindowError]], gradients: Sequence[WindowGradient] | None) -> str:
    """Return the numbers of both tables; gradients are null where they were not measured."""
    by_noise = [
        {"noise": level, "windows": [error._asdict() for error in errors]} for level, errors in pixels.items()
    ]
    by_context = gradients and [gradient._asdict() for gradient in gradients]
    return json.dumps({"pixels": by_noise, "gradients": by_context})
