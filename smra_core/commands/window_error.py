"""window-error: measure how far decoded windows of a clip are from the whole clip."""

import argparse
from pathlib import Path

import torch

from ..data.motion_clip import read_motion_clip
from ..decoding.window_error import measure_window_errors, render_errors
from ..training.mora import MotionSettings
from ..wan.settings import NOT_NEGATIVE
from .model_options import add_model, open_backend
from .options import add_option
from .settings_options import add_settings, read_settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("clip", type=Path, help="The clip that a motion LoRA is to be trained on.")
    add_option(
        parser, "--noise",
        "Standard deviations of the noise that makes a prediction of the clip's latents, in units of theirs.",
        [0.1, 0.3], "0.1 0.3", type=float, nargs="+",
    )  # fmt: skip
    add_settings(parser, MotionSettings(), ("width", "height", "frames", "window"))
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Print the errors of windows, a table for each noise level."""
    settings = read_settings(args, MotionSettings())
    if not all(NOT_NEGATIVE.holds(level) for level in args.noise):
        raise ValueError(f"--noise must be finite and at least 0, got {args.noise}. The default is 0.1 0.3.")
    backend = open_backend(args)
    clip = read_motion_clip(
        args.clip, (settings.width, settings.height), settings.frames, fps=backend.spec.latents.fps
    )
    (latents,) = backend.encode_clips([clip.frames])
    latents = latents.to(backend.device)
    decoder = backend.load_decoder()
    for level in args.noise:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
        errors = measure_window_errors(decoder, latents, latents + level * noise, settings.window)
        print(f"Noise of {level} standard deviations, windows of {settings.window} latents:")
        print(render_errors(errors))
