"""train-motion: train a motion LoRA on a clip."""

import argparse
from pathlib import Path

from ..data.frame_rate import WAN_FPS, check_frame_rate
from ..data.motion_clip import read_motion_clip
from ..miniature.weight_paths import SEA_RAFT_FILE
from ..standalone.progress_bar import TrainingBar
from ..storage.file_name import make_file_name
from ..training.model_fit import check_fit
from ..training.mora import MotionSettings
from ..training.motion import train_motion
from ..training.trainer import MOTION_TRAIN
from .model_options import add_model, check_weight_file, choose_encoder_file, open_backend
from .options import add_option, log_notes
from .settings_options import add_settings, read_settings

KEEP_FRAMES = "keep"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "clip",
        type=Path,
        help="Video, GIF or animated WebP, a folder with one and its metadata.csv, or numbered pictures.",
    )
    add_option(
        parser, "--sea-raft", "SEA-RAFT weights: spring-M, or S for small cards.",
        shown="the miniature's, for the miniature", type=Path,
    )  # fmt: skip
    add_option(
        parser, "--tiny-decoder", "Weights of a small decoder for small cards: lighttaew2_1 or taew2_1.",
        type=Path,
    )  # fmt: skip
    add_option(parser, "--caption", "Caption of the clip, such as 'a person is vvt walking'.")
    add_option(parser, "--start", "First frame that is used.", 0, type=int)
    add_option(
        parser, "--frame-rate",
        "Frames per second that the clip is brought to by time, so that the motion keeps its speed; keep "
        "takes the frames as they are.",
        WAN_FPS, f"{WAN_FPS:g}, WAN's", type=parse_frame_rate,
    )  # fmt: skip
    add_option(parser, "--stride", "Use every n-th frame at that rate.", 1, type=int)
    add_option(parser, "--name", "Name of the run.", shown="the clip's name")
    add_settings(parser, MotionSettings())
    add_settings(parser, MOTION_TRAIN)
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Train a motion LoRA, and print the path of its file."""
    settings, train = read_settings(args, MotionSettings()), read_settings(args, MOTION_TRAIN)
    # A pattern of numbered pictures is no file; its run is called after their folder.
    clip_name = args.clip.resolve().stem if args.clip.exists() else args.clip.resolve().parent.name
    name = make_file_name(args.name or clip_name)
    check_weight_file("a tiny decoder", "--tiny-decoder", args.tiny_decoder)
    backend = open_backend(args)
    check_fit(settings, backend.spec)
    sea_raft = (
        choose_encoder_file("SEA-RAFT", "--sea-raft", args.sea_raft, args.model, SEA_RAFT_FILE)
        if settings.mora_weight
        else None
    )
    clip = read_motion_clip(
        args.clip, (settings.width, settings.height), settings.frames, args.start, args.stride, args.caption,
        args.frame_rate,
    )  # fmt: skip
    log_notes(clip.notes)
    with TrainingBar("motion LoRA") as report:
        trained = train_motion(backend, [clip], sea_raft, settings, train, name, report, args.tiny_decoder)
    print(trained.path)


def parse_frame_rate(text: str) -> float | None:
    """Return the frames per second that a text gives, or None for the word keep.

    Raises argparse.ArgumentTypeError for anything else.
    """
    if text.strip().lower() == KEEP_FRAMES:
        return None
    try:
        fps = float(text)
        check_frame_rate(fps)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no frame rate. Give frames per second, such as {WAN_FPS:g}, or {KEEP_FRAMES}."
        ) from error
    return fps
