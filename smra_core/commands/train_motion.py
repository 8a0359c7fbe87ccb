"""train-motion: train a motion LoRA on one clip or several."""

import argparse
from pathlib import Path

from ..data.motion_set import read_motion_set
from ..miniature.weight_paths import SEA_RAFT_FILE
from ..standalone.progress_bar import TrainingBar
from ..storage.file_name import make_file_name
from ..training.job import TrainedLora
from ..training.model_fit import check_fit
from ..training.motion import train_motion
from ..training.motion_settings import MotionSettings
from ..training.ranks import Ranks
from ..training.train_settings import MOTION_TRAIN
from .data_options import add_frame_rate, add_own_sizes, choose_multiple, select_frames
from .model_options import add_model, check_weight_file, choose_encoder_file, open_backend
from .options import add_json, add_option, log_notes
from .settings_options import add_settings, read_settings
from .training_run import run_training


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "clip",
        type=Path,
        help="Video, GIF or animated WebP, numbered pictures, or a folder of clips of one motion, with .txt "
        "captions or a metadata.csv or .jsonl.",
    )
    add_option(
        parser, "--sea-raft", "SEA-RAFT weights: spring-M, or S for small cards.",
        shown="the miniature's, for the miniature", type=Path,
    )  # fmt: skip
    add_option(
        parser, "--tiny-decoder", "Weights of a small decoder for small cards: lighttaew2_1 or taew2_1, "
        "for TI2V-5B lighttaew2_2 or taew2_2.", type=Path,
    )  # fmt: skip
    add_option(parser, "--caption", "Caption of all clips, such as 'a person is vvt walking'.")
    add_option(
        parser, "--masks",
        "Folder with a mask for each clip (a video, a picture, or a folder of numbered pictures, called as "
        "the clip), or one mask. What is white is left out of the training.",
        type=Path,
    )  # fmt: skip
    add_own_sizes(parser)
    add_option(parser, "--start", "First frame of each clip that is used.", 0, type=int)
    add_frame_rate(parser)
    add_option(parser, "--stride", "Use every n-th frame at that rate.", 1, type=int)
    add_option(parser, "--name", "Name of the run.", shown="the name of the clip or folder")
    add_settings(parser, MotionSettings())
    add_settings(parser, MOTION_TRAIN)
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Train a motion LoRA, and print the path of its file."""
    run_training(args, train)


def train(args: argparse.Namespace, ranks: Ranks) -> TrainedLora:
    """Train a motion LoRA as one of the ranks."""
    settings, train_settings = read_settings(args, MotionSettings()), read_settings(args, MOTION_TRAIN)
    # A pattern of numbered pictures is no file; its run is called after their folder.
    clip_name = args.clip.resolve().stem if args.clip.exists() else args.clip.resolve().parent.name
    name = make_file_name(args.name or clip_name)
    check_weight_file("a tiny decoder", "--tiny-decoder", args.tiny_decoder)
    ranks.check_batches(train_settings.accumulate)
    backend = open_backend(args, ranks)
    check_fit(settings, backend.spec)
    sea_raft = (
        choose_encoder_file("SEA-RAFT", "--sea-raft", args.sea_raft, args.model, SEA_RAFT_FILE)
        if settings.mora_weight
        else None
    )
    selection = select_frames(args, backend, settings.frames, args.start, args.stride)
    clips, notes = read_motion_set(
        args.clip, (settings.width, settings.height), selection, args.caption,
        choose_multiple(args, backend), args.masks,
    )  # fmt: skip
    log_notes(notes)
    with TrainingBar("motion LoRA", ranks.is_first) as report:
        return train_motion(
            backend, clips, sea_raft, settings, train_settings, name, report, args.tiny_decoder
        )
