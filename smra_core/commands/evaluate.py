"""evaluate: measure videos by the paper's metrics."""

import argparse
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..data.clip_file import read_clip_file, read_clip_size
from ..data.subject_set import read_subject_set
from ..data.video import Selection, Video
from ..encoders.clip import Clip
from ..encoders.co_tracker import CoTracker
from ..encoders.sea_raft import load_sea_raft
from ..evaluation.evaluate import Evaluation, EvaluationModels, References, evaluate_video
from ..evaluation.evaluation_table import render_evaluations, to_json
from ..evaluation.picture_encoder import load_picture_encoder
from ..evaluation.quality import Musiq, load_aesthetic_layer
from ..standalone.device import choose_device
from ..wan.settings import COUNT
from ..wan.spec import LATENTS_21
from .options import add_json, add_option, log_notes

LARGEST_PICTURE = (512, 512)
"""Width and height whose product is the most pixels that a picture of the subject is read with."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("videos", type=Path, nargs="+", help="Videos to measure.")
    add_option(parser, "--prompt", "Prompt of the videos, for CLIP-T and PickScore.")
    add_option(parser, "--subject", "Folder of the subject's pictures, for CLIP-I and DINO-I.", type=Path)
    add_option(parser, "--motion", "Clip of the motion, for motion fidelity and amount.", type=Path)
    add_option(
        parser, "--clip",
        "CLIP: a transformers folder such as openai/clip-vit-base-patch32, as DreamBooth's.", type=Path,
    )  # fmt: skip
    add_option(
        parser, "--dino",
        "DINO ViT-S/16, the paper's (facebook/dino-vits16, dino_deitsmall16_pretrain.pth), or DINOv2, whose "
        "metrics are named after it.",
        type=Path,
    )  # fmt: skip
    add_option(parser, "--sea-raft", "SEA-RAFT weights, for motion.", type=Path)
    add_option(
        parser, "--co-tracker",
        "CoTracker 3's weights, scaled_offline.pth, for motion fidelity as in the paper. It needs the "
        "authors' package.",
        type=Path,
    )  # fmt: skip
    add_option(parser, "--pick-score", "PickScore: the folder of yuvalkirstain/PickScore_v1.", type=Path)
    add_option(
        parser, "--aesthetic",
        "LAION's layer, sa_0_4_vit_l_14_linear.pth, for CLIP ViT-L/14 (openai/clip-vit-large-patch14).",
        type=Path,
    )  # fmt: skip
    add_option(parser, "--musiq", "MUSIQ, musiq_spaq_ckpt-358bb6af.pth. It needs pyiqa.", type=Path)
    add_option(parser, "--frames", "Most frames of a video that are measured.", 81, type=int)
    add_option(parser, "--device", "Device to compute on: cpu, cuda, cuda:1 …", "auto", "auto")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Measure each video and print the metrics."""
    if not COUNT.holds(args.frames):
        raise ValueError(f"--frames must be at least 1, got {args.frames}. The default is 81.")
    subject = None if args.subject is None else _read_subject(args.subject)
    models = load_models(args)
    evaluations: dict[str, Evaluation] = {}
    for path in tqdm(args.videos, desc="evaluating", unit="video", disable=len(args.videos) == 1):
        video = _read_clip(path, read_clip_size(path), Selection(args.frames))
        motion = None if args.motion is None else _read_motion(args.motion, video)
        references = References(args.prompt, subject, motion)
        evaluations[str(path)] = evaluate_video(video.frames, references, models)
    print(to_json(evaluations) if args.json else render_evaluations(evaluations))


def load_models(args: argparse.Namespace) -> EvaluationModels:
    """Load the networks that the options give. Raises ValueError without any."""
    device = choose_device(args.device)
    if not any((args.clip, args.dino, args.sea_raft, args.pick_score, args.musiq, args.co_tracker)):
        raise ValueError(
            "No network is given that could measure anything. Give at least one of --clip, --dino, "
            "--sea-raft, --co-tracker, --pick-score and --musiq; `evaluate --help` names their files."
        )
    return EvaluationModels(
        clip=args.clip and Clip(args.clip, device),
        dino=args.dino and load_picture_encoder(args.dino, device),
        sea_raft=args.sea_raft and load_sea_raft(args.sea_raft).to(device),
        pick_score=args.pick_score and Clip(args.pick_score, device),
        aesthetic=args.aesthetic and load_aesthetic_layer(args.aesthetic),
        musiq=args.musiq and Musiq(args.musiq, device),
        co_tracker=args.co_tracker and CoTracker(args.co_tracker, device),
    )


def _read_subject(folder: Path) -> list[Tensor]:
    """Read the subject's pictures, each at its own shape; captions do not matter here."""
    pictures = read_subject_set(
        folder, LARGEST_PICTURE, caption="subject", own_multiple=LATENTS_21.token_pixels
    )
    log_notes(pictures.notes)
    return [image.pixels for image in pictures.images]


def _read_motion(path: Path, video: Video) -> Tensor:
    """Read the clip of the motion at a video's size, frame rate and length."""
    _, _, height, width = video.frames.shape
    return _read_clip(path, (width, height), Selection(len(video.frames), fps=video.fps)).frames


def _read_clip(path: Path, size: tuple[int, int], selection: Selection) -> Video:
    video = read_clip_file(path, size, selection)
    log_notes([f"{path.name}: {note}" for note in video.notes])
    return video
