"""The command line: train-subject, train-motion, sample, demo, inspect, convert."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from . import __version__
from .data.motion_clip import read_motion_clip
from .data.subject_set import read_subject_set
from .data.video import write_video
from .lora.adapter import Lora
from .lora.plan import MOTION_STRENGTHS, STRENGTH_PRESETS, SparsePlan, Strengths, TPointSchedule
from .lora.reader import DIALECTS_OUT, convert_lora, load_lora
from .lora.report import describe_lora, render_report
from .miniature.demo import run_demo
from .standalone.backend import Workplace
from .standalone.device import DTYPES, choose_device, choose_dtype
from .standalone.generate import Arm, generate
from .standalone.model_files import MINIATURE, find_backbone
from .standalone.progress_bar import TrainingBar
from .storage.tensor_cache import TensorCache
from .teacher_files import teacher_file
from .training.mora import MotionSettings
from .training.motion import train_motion
from .training.subject import train_subject
from .training.subject_masks import with_masks
from .training.sura import SubjectSettings
from .training.trainer import TrainSettings
from .wan.sampler import SamplingSettings, ScheduledLora

log = logging.getLogger("smrabooth")

Settings = TypeVar("Settings")

SUBJECT_HELP = {
    "rank": "higher rank holds more detail and makes a bigger file",
    "plan": "linears that get the LoRA: a plan's name or roles such as q,k,ffn.0",
    "width": "width that images are cropped to, a multiple of 16",
    "height": "height that images are cropped to, a multiple of 16",
    "sura_weight": "weight of the alignment with DINOv2; 0 turns it off",
    "align_block": "block whose tokens are aligned, from 0 (paper); the authors' release: 2",
}
MOTION_HELP = {
    "rank": "higher rank holds more motion detail, and more of the clip's looks",
    "plan": "linears that get the LoRA: a plan's name or roles such as v,o,ffn.0,ffn.2",
    "width": "width that the clip is cropped to, a multiple of 16",
    "height": "height that the clip is cropped to, a multiple of 16",
    "frames": "frames of the clip, 4n+1; fewer need less memory",
    "mora_weight": "weight of the optical-flow alignment; 0 turns it and the decoder off",
    "decode": "auto, exact (paper: the whole clip), exact-low-memory, windowed or tiny",
    "window": "latents that a windowed step compares; more need more memory",
    "context": "latents decoded before a window; more are nearer to the whole clip and need more memory",
    "flow_weight": "how the flow loss counts by noise level: none (paper) or clean",
}
TRAIN_HELP = {
    "steps": "optimiser steps; raising it later extends the finished run",
    "batch_size": "samples that go through the model at once; more need more memory",
    "accumulate": "batches that one optimiser step averages over",
    "learning_rate": "too high forgets the model, too low learns nothing",
    "seed": "another seed gives another LoRA of the same data",
    "save_every": "steps between two saved states; a cancelled run goes on from the last step in any case",
    "save_minutes": "the state is saved after so many minutes, too",
}
SAMPLE_HELP = {
    "steps": "denoising steps",
    "shift": "above 1 more steps are spent at high noise",
    "guidance": "how hard the prompt pulls; 1 turns guidance off and halves the time",
    "width": "video width, a multiple of 16",
    "height": "video height, a multiple of 16",
    "frames": "video frames, 4n+1",
    "fps": "frames a second of the file",
    "seed": "another seed gives another video",
    "sampler": "euler, or heun with two evaluations a step",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 with one line on bad input, 130 when interrupted (what was trained is
    kept).
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last step", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smra_core", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (_train_subject, _train_motion, _sample, _demo, _inspect, _convert):
        add(commands)
    return parser


def add_options(parser: argparse.ArgumentParser, settings: type, texts: Mapping[str, str]) -> None:
    """An option for each named field of a settings dataclass, with the dataclass's default."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name, text in texts.items():
        default = defaults[name]
        kind: Callable[[str], Any] = SparsePlan.parse if isinstance(default, SparsePlan) else type(default)
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=kind, default=default, help=f"{text} (default: {default})")


def settings_from(args: argparse.Namespace, settings: type[Settings], texts: Mapping[str, str]) -> Settings:
    return settings(**{name: getattr(args, name) for name in texts})


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        default=MINIATURE,
        help="WAN 2.1: a diffusers folder or a native DiT file (default: miniature)",
    )
    add("--vae", help="native VAE file, when --model is a file")
    add("--text-encoder", help="UMT5: a file, or a folder with it and its tokenizer; when --model is a file")
    add("--device", default="auto", help="cpu, cuda, cuda:1 … (default: the GPU where there is one)")
    add("--dtype", default="auto", choices=["auto", *DTYPES], help="precision of the frozen model")
    add(
        "--out",
        type=Path,
        default=Path("smra_runs"),
        help="folder for runs and the cache (default: smra_runs)",
    )
    add("--cache", type=Path, help="folder of encoded inputs, shared by all runs (default: OUT/cache)")


def workplace_from(args: argparse.Namespace) -> Workplace:
    backbone = find_backbone(args.model, args.vae, args.text_encoder)
    cache = TensorCache(args.cache or args.out / "cache")
    device = choose_device(args.device)
    return Workplace(backbone, args.out / "runs", cache, device, choose_dtype(args.dtype, device))


def _train_subject(commands) -> None:
    parser = commands.add_parser("train-subject", help="train a subject LoRA on a folder of images")
    parser.add_argument("folder", type=Path, help="images with masks/ and metadata.csv or .txt captions")
    parser.add_argument(
        "--dinov2", type=Path, help="DINOv2 weights: timm, the original .pth, or transformers'"
    )
    parser.add_argument("--sam", type=Path, help="SAM weights, to find the subject where a mask is missing")
    parser.add_argument("--caption", help="caption of images that have none, e.g. 'A picture of sks dog'")
    parser.add_argument("--name", help="name of the run (default: the folder's)")
    add_options(parser, SubjectSettings, SUBJECT_HELP)
    add_options(parser, TrainSettings, TRAIN_HELP)
    _add_model(parser)
    parser.set_defaults(run=run_train_subject)


def run_train_subject(args: argparse.Namespace) -> None:
    settings = settings_from(args, SubjectSettings, SUBJECT_HELP)
    workplace = workplace_from(args)
    dinov2 = teacher_file("dinov2", args.dinov2, args.model) if settings.sura_weight else None
    subject = read_subject_set(args.folder, (settings.width, settings.height), caption=args.caption)
    _tell(subject.notes)
    images = with_masks(subject.images, args.sam, workplace)
    train = settings_from(args, TrainSettings, TRAIN_HELP)
    with TrainingBar("subject LoRA") as report:
        name = args.name or args.folder.name
        trained = train_subject(workplace, images, dinov2, settings, train, name, report)
    print(trained.path)


def _train_motion(commands) -> None:
    parser = commands.add_parser("train-motion", help="train a motion LoRA on a clip")
    parser.add_argument("clip", type=Path, help="a video file, or a folder with one and its metadata.csv")
    parser.add_argument("--sea-raft", type=Path, help="SEA-RAFT weights (spring-M, or S for small cards)")
    parser.add_argument("--tiny-decoder", type=Path, help="lighttaew2_1 or taew2_1, for small cards")
    parser.add_argument("--caption", help="caption of the clip, e.g. 'a person is vvt walking'")
    parser.add_argument("--start", type=int, default=0, help="first frame that is used (default: 0)")
    parser.add_argument("--stride", type=int, default=1, help="use every n-th frame (default: 1)")
    parser.add_argument("--name", help="name of the run (default: the clip's)")
    add_options(parser, MotionSettings, MOTION_HELP)
    add_options(parser, TrainSettings, TRAIN_HELP)
    _add_model(parser)
    parser.set_defaults(run=run_train_motion)


def run_train_motion(args: argparse.Namespace) -> None:
    settings = settings_from(args, MotionSettings, MOTION_HELP)
    workplace = workplace_from(args)
    sea_raft = teacher_file("sea_raft", args.sea_raft, args.model) if settings.mora_weight else None
    clip = read_motion_clip(
        args.clip, (settings.width, settings.height), settings.frames, args.start, args.stride, args.caption
    )
    _tell(clip.notes)
    train = settings_from(args, TrainSettings, TRAIN_HELP)
    with TrainingBar("motion LoRA") as report:
        name = args.name or args.clip.stem
        trained = train_motion(workplace, clip, sea_raft, settings, train, name, report, args.tiny_decoder)
    print(trained.path)


def _sample(commands) -> None:
    parser = commands.add_parser("sample", help="make a video with a subject and a motion LoRA")
    parser.add_argument("prompt", help="e.g. 'a sks dog is vvt walking on the moon'")
    parser.add_argument("--negative", default="", help="what the video should not show")
    parser.add_argument("--subject", type=Path, help="subject LoRA")
    parser.add_argument("--motion", type=Path, help="motion LoRA")
    parser.add_argument("--preset", choices=STRENGTH_PRESETS, default="paper", help="(default: paper)")
    parser.add_argument("--subject-strength", type=_strengths, help="early,late; overrides the preset")
    parser.add_argument("--motion-strength", type=_strengths, default=MOTION_STRENGTHS, help="early,late")
    parser.add_argument("--subject-plan", type=SparsePlan.parse, help="keep only these linears of the LoRA")
    parser.add_argument("--motion-plan", type=SparsePlan.parse, help="keep only these linears of the LoRA")
    parser.add_argument(
        "--t-point", type=_t_point, default=TPointSchedule(),
        help="where strengths switch: a sigma (0.7), or a step of a run (15/50, or 15/50@5 at shift 5)",
    )  # fmt: skip
    parser.add_argument("--video", type=Path, default=Path("video.mp4"), help="(default: video.mp4)")
    add_options(parser, SamplingSettings, SAMPLE_HELP)
    _add_model(parser)
    parser.set_defaults(run=run_sample)


def run_sample(args: argparse.Namespace) -> None:
    settings = settings_from(args, SamplingSettings, SAMPLE_HELP)
    workplace = workplace_from(args)
    subject_strengths = args.subject_strength or STRENGTH_PRESETS[args.preset]
    chosen = [
        (args.subject, args.subject_plan, subject_strengths),
        (args.motion, args.motion_plan, args.motion_strength),
    ]
    spec = workplace.backbone.spec()
    loras = tuple(
        ScheduledLora(sparse_lora(load_lora(path, spec).lora, plan), strengths)
        for path, plan, strengths in chosen
        if path is not None
    )
    arm = Arm("video", "", loras, args.t_point)
    with tqdm(total=settings.steps, desc="sampling", unit="step") as bar:
        videos = generate(workplace, [args.prompt], [arm], settings, args.negative, lambda *_: bar.update())
    write_video(args.video, videos["video"][0], settings.fps)
    print(args.video)


def sparse_lora(lora: Lora, plan: SparsePlan | None) -> Lora:
    """The part of a LoRA that a plan includes; ValueError when nothing is left."""
    if plan is None:
        return lora
    kept = {name: pair for name, pair in lora.items() if plan.includes(name)}
    if not kept:
        raise ValueError(f"Plan {plan} leaves none of the LoRA's {len(lora)} modules. Give another plan.")
    return kept


def _strengths(text: str) -> Strengths:
    values = [float(part) for part in text.split(",")]
    if len(values) not in (1, 2):
        raise ValueError("strength takes one number or early,late")
    return Strengths(values[0], values[-1])


def _t_point(text: str) -> TPointSchedule:
    run, _, shift = text.partition("@")
    step, of, steps = run.partition("/")
    if not of:
        return TPointSchedule(float(run))
    return TPointSchedule.from_step(int(step), int(steps), float(shift or 1))


def _demo(commands) -> None:
    parser = commands.add_parser("demo", help="the whole method on the miniature, in minutes, with a report")
    parser.add_argument("--out", type=Path, default=Path("smra_demo"), help="(default: smra_demo)")
    parser.add_argument("--subject", type=Path, help="your own subject folder")
    parser.add_argument("--motion", type=Path, help="your own clip or its folder")
    parser.add_argument("--prompt", help="what to sample (default: made of the two captions)")
    parser.set_defaults(run=run_demo_command)


def run_demo_command(args: argparse.Namespace) -> None:
    print(run_demo(args.out, args.subject, args.motion, args.prompt))


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        log.info("note: %s", note)


def _inspect(commands) -> None:
    parser = commands.add_parser("inspect", help="say what is in a LoRA file")
    parser.add_argument("file", type=Path)
    parser.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> None:
    print(render_report(describe_lora(load_lora(args.file))))


def _convert(commands) -> None:
    parser = commands.add_parser("convert", help="write a LoRA under another program's names")
    parser.add_argument("source", type=Path, help="a LoRA in any dialect, or PEFT's adapter folder")
    parser.add_argument("target", type=Path, help="a .safetensors file; with --to peft, a folder")
    parser.add_argument(
        "--to",
        choices=DIALECTS_OUT,
        default="comfyui",
        help="whose names: ComfyUI's, diffusers', kohya's, or PEFT's adapter folder (default: comfyui)",
    )
    parser.set_defaults(run=lambda args: convert_lora(args.source, args.target, args.to))
