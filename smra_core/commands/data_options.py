"""Options that say how clips and pictures are read."""

import argparse

from ..data.frame_rate import WAN_FPS, check_frame_rate
from ..data.video import Selection
from ..standalone.backend import StandaloneBackend
from ..wan.spec import LATENTS_22
from .options import add_option

KEEP_FRAMES = "keep"


def add_frame_rate(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses the frame rate of clips."""
    add_option(
        parser, "--frame-rate",
        f"Frames per second that each clip is brought to by time, so that the motion keeps its speed; "
        f"{KEEP_FRAMES} takes the frames as they are.",
        shown=f"the model's: {WAN_FPS:g}, for TI2V-5B {LATENTS_22.fps:g}", type=parse_frame_rate,
    )  # fmt: skip


def select_frames(
    args: argparse.Namespace, backend: StandaloneBackend, frames: int, start: int = 0, stride: int = 1
) -> Selection:
    """Return which frames of a clip are read, at the rate that was given or at the model's."""
    model_fps = backend.spec.latents.fps
    fps = model_fps if args.frame_rate is None else args.frame_rate
    return Selection(frames, start, stride, None if fps == KEEP_FRAMES else fps, model_fps)


def add_own_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets everything keep its own shape."""
    parser.add_argument(
        "--own-sizes",
        action="store_true",
        help="Let each clip and picture keep its own shape, with at most as many pixels as width x height "
        "has, in place of cropping all to that size. A batch holds one shape.",
    )


def choose_multiple(args: argparse.Namespace, backend: StandaloneBackend) -> int | None:
    """Return the number that own sizes are multiples of; None where everything is cropped to one size."""
    return backend.spec.latents.token_pixels if args.own_sizes else None


def parse_frame_rate(text: str) -> float | str:
    """Return the frames per second that a text gives, or the word keep.

    Raises argparse.ArgumentTypeError for anything else.
    """
    if text.strip().lower() == KEEP_FRAMES:
        return KEEP_FRAMES
    try:
        fps = float(text)
        check_frame_rate(fps)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no frame rate. Give frames per second, such as {WAN_FPS:g}, or {KEEP_FRAMES}."
        ) from error
    return fps
