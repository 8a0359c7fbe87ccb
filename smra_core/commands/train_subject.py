"""train-subject: train a subject LoRA on a folder of images and clips."""

import argparse
from pathlib import Path

from ..data.subject_clip import CLIP_FRAMES
from ..data.subject_set import describe_new_masks, read_subject_set
from ..miniature.weight_paths import DINOV2_FILE
from ..standalone.progress_bar import TrainingBar
from ..storage.file_name import make_file_name
from ..training.job import TrainedLora
from ..training.memory_advice import tell_subject_memory
from ..training.model_fit import check_fit
from ..training.ranks import Ranks
from ..training.subject import find_missing_masks, train_subject
from ..training.sura import SubjectSettings
from ..training.train_settings import SUBJECT_TRAIN
from ..wan.spec import latent_frames
from .data_options import add_frame_rate, add_own_sizes, choose_multiple, select_frames
from .model_options import add_model, check_weight_file, choose_encoder_file, open_backend
from .options import add_json, add_option, log_notes
from .settings_options import add_settings, read_settings
from .training_run import run_training


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "folder",
        type=Path,
        help="Folder of images, with masks/ and metadata.csv, .jsonl or .txt captions. Videos count, too, if "
        "masks/ has masks of their frames: a video or a folder of numbered pictures, called as the video.",
    )
    add_option(
        parser, "--dinov2", "DINOv2 weights: timm's, the original .pth, or transformers'.",
        shown="the miniature's, for the miniature", type=Path,
    )  # fmt: skip
    add_option(parser, "--sam", "SAM weights, to segment the subject in images without a mask.", type=Path)
    add_option(
        parser, "--caption",
        "Caption of all images, in place of those in the folder, such as 'A picture of sks dog'.",
    )  # fmt: skip
    add_own_sizes(parser)
    add_option(parser, "--clip-frames", "Most frames of a video, 4n+1.", CLIP_FRAMES, type=int)
    add_frame_rate(parser)
    add_option(parser, "--name", "Name of the run.", shown="the folder's name")
    add_settings(parser, SubjectSettings())
    add_settings(parser, SUBJECT_TRAIN)
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Train a subject LoRA, and print the path of its file."""
    run_training(args, train)


def train(args: argparse.Namespace, ranks: Ranks) -> TrainedLora:
    """Train a subject LoRA as one of the ranks."""
    settings, train_settings = read_settings(args, SubjectSettings()), read_settings(args, SUBJECT_TRAIN)
    name = make_file_name(args.name or args.folder.resolve().name)
    check_weight_file("SAM", "--sam", args.sam)
    latent_frames(args.clip_frames)
    ranks.check_batches(train_settings.accumulate)
    backend = open_backend(args, ranks)
    check_fit(settings, backend.spec)
    dinov2 = (
        choose_encoder_file("DINOv2", "--dinov2", args.dinov2, args.model, DINOV2_FILE)
        if settings.sura_weight
        else None
    )
    subject = read_subject_set(
        args.folder, (settings.width, settings.height), caption=args.caption,
        clips=select_frames(args, backend, args.clip_frames), own_multiple=choose_multiple(args, backend),
    )  # fmt: skip
    log_notes(subject.notes)
    frames = args.clip_frames if subject.clips else 1
    tell_subject_memory(
        settings, train_settings.batch_size, backend.spec, backend.device, backend.weights, frames
    )
    with ranks.let_first_prepare():
        images = find_missing_masks(subject.images, args.sam, backend)
    log_notes(describe_new_masks(subject.images, images))
    with TrainingBar("subject LoRA", ranks.is_first) as report:
        return train_subject(
            backend, [*images, *subject.clips], dinov2, settings, train_settings, name, report
        )
