"""The command line: train-subject, train-motion, sample, demo, inspect, convert, window-error."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from . import __version__
from .data.motion_clip import read_motion_clip
from .data.subject_set import read_subject_set
from .data.video import write_video
from .decoding.window_error import measure_window_errors, render_errors
from .lora.adapter import restrict
from .lora.plan import SparsePlan
from .lora.reader import load_lora
from .lora.report import describe_lora, render_report
from .lora.schedule import MOTION_STRENGTHS, STRENGTH_PRESETS, ScheduledLora, Strengths, TPoint
from .lora.writer import DIALECTS_OUT, convert_lora
from .miniature.demo import run_demo
from .miniature.model_files import MINIATURE, MINIATURE_FILES
from .miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from .standalone.backend import StandaloneBackend
from .standalone.device import DTYPES, choose_device, choose_dtype
from .standalone.generate import Variant, generate
from .standalone.model_files import find_wan_files
from .standalone.progress_bar import TrainingBar
from .storage.tensor_cache import TensorCache
from .training.mora import MotionSettings
from .training.motion import train_motion
from .training.subject import find_missing_masks, train_subject
from .training.sura import SubjectSettings
from .training.trainer import TrainSettings
from .wan.sampler import SamplingSettings
from .wan.settings import collect_help

log = logging.getLogger("smrabooth")

Settings = TypeVar("Settings")


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
    for add in (_train_subject, _train_motion, _sample, _demo, _inspect, _convert, _window_error):
        add(commands)
    return parser


def add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add an option for each field of a settings dataclass, with its default and its explanation."""
    for field in dataclasses.fields(settings):
        default: Any = field.default
        arguments: dict[str, Any] = {"default": default, "help": _help_text(field)}
        if isinstance(default, bool):
            arguments["action"] = argparse.BooleanOptionalAction
        else:
            arguments["type"] = SparsePlan.parse if isinstance(default, SparsePlan) else type(default)
        parser.add_argument("--" + field.name.replace("_", "-"), **arguments)


def _help_text(field: dataclasses.Field) -> str:
    text = field.metadata["help"].replace("%", "%%")
    return text if isinstance(field.default, bool) else f"{text} (default: {field.default})"


def settings_from(args: argparse.Namespace, settings: type[Settings]) -> Settings:
    """Build a settings dataclass from the options that `add_options` added."""
    return settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(settings)})


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


def backend_from(args: argparse.Namespace) -> StandaloneBackend:
    """Find the model that the options name, and choose device, precision and folders."""
    miniature = args.model == MINIATURE
    files = MINIATURE_FILES if miniature else find_wan_files(args.model, args.vae, args.text_encoder)
    cache = TensorCache(args.cache or args.out / "cache")
    device = choose_device(args.device)
    return StandaloneBackend(files, args.out / "runs", cache, device, choose_dtype(args.dtype, device))


def encoder_file(name: str, option: str, given: Path | None, model: str, miniature_file: Path) -> Path:
    """Return the given weight file, or the miniature's where that is trained on.

    ValueError when none was given for another model, or it is not there.
    """
    if given is None and model == MINIATURE:
        return miniature_file
    if given is None:
        raise ValueError(
            f"Training on {model} needs the weights of {name}. Give their file with {option} FILE."
        )
    if not given.is_file():
        raise ValueError(f"{given} is not a file. Give the weights of {name} with {option} FILE.")
    return given


def _train_subject(commands) -> None:
    parser = commands.add_parser("train-subject", help="train a subject LoRA on a folder of images")
    parser.add_argument("folder", type=Path, help="images with masks/ and metadata.csv or .txt captions")
    parser.add_argument(
        "--dinov2", type=Path, help="DINOv2 weights: timm, the original .pth, or transformers'"
    )
    parser.add_argument("--sam", type=Path, help="SAM weights, to find the subject where a mask is missing")
    parser.add_argument("--caption", help="caption of images that have none, e.g. 'A picture of sks dog'")
    parser.add_argument("--name", help="name of the run (default: the folder's)")
    add_options(parser, SubjectSettings)
    add_options(parser, TrainSettings)
    _add_model(parser)
    parser.set_defaults(run=run_train_subject)


def run_train_subject(args: argparse.Namespace) -> None:
    settings = settings_from(args, SubjectSettings)
    backend = backend_from(args)
    dinov2 = (
        encoder_file("DINOv2", "--dinov2", args.dinov2, args.model, DINOV2_FILE)
        if settings.sura_weight
        else None
    )
    subject = read_subject_set(args.folder, (settings.width, settings.height), caption=args.caption)
    _tell(subject.notes)
    images = find_missing_masks(subject.images, args.sam, backend)
    train = settings_from(args, TrainSettings)
    with TrainingBar("subject LoRA") as report:
        name = args.name or args.folder.name
        trained = train_subject(backend, images, dinov2, settings, train, name, report)
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
    add_options(parser, MotionSettings)
    add_options(parser, TrainSettings)
    _add_model(parser)
    parser.set_defaults(run=run_train_motion)


def run_train_motion(args: argparse.Namespace) -> None:
    settings = settings_from(args, MotionSettings)
    backend = backend_from(args)
    sea_raft = (
        encoder_file("SEA-RAFT", "--sea-raft", args.sea_raft, args.model, SEA_RAFT_FILE)
        if settings.mora_weight
        else None
    )
    clip = read_motion_clip(
        args.clip, (settings.width, settings.height), settings.frames, args.start, args.stride, args.caption
    )
    _tell(clip.notes)
    train = settings_from(args, TrainSettings)
    with TrainingBar("motion LoRA") as report:
        name = args.name or args.clip.stem
        trained = train_motion(backend, clip, sea_raft, settings, train, name, report, args.tiny_decoder)
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
        "--t-point", type=_t_point, default=TPoint(),
        help="where strengths switch: a sigma (0.7), or a step of a run (15/50, or 15/50@5 at shift 5)",
    )  # fmt: skip
    parser.add_argument("--video", type=Path, default=Path("video.mp4"), help="(default: video.mp4)")
    add_options(parser, SamplingSettings)
    _add_model(parser)
    parser.set_defaults(run=run_sample)


def run_sample(args: argparse.Namespace) -> None:
    settings = settings_from(args, SamplingSettings)
    backend = backend_from(args)
    subject_strengths = args.subject_strength or STRENGTH_PRESETS[args.preset]
    chosen = [
        (args.subject, args.subject_plan, subject_strengths),
        (args.motion, args.motion_plan, args.motion_strength),
    ]
    spec = backend.spec
    loras = tuple(
        ScheduledLora(restrict(load_lora(path, spec).lora, plan, path.name), strengths)
        for path, plan, strengths in chosen
        if path is not None
    )
    variant = Variant("video", "", loras, args.t_point)
    with tqdm(total=settings.steps, desc="sampling", unit="step") as bar:
        videos = generate(backend, [args.prompt], [variant], settings, args.negative, lambda *_: bar.update())
    write_video(args.video, videos["video"][0], settings.fps)
    print(args.video)


def _strengths(text: str) -> Strengths:
    values = [float(part) for part in text.split(",")]
    if len(values) not in (1, 2):
        raise ValueError("strength takes one number or early,late")
    return Strengths(values[0], values[-1])


def _t_point(text: str) -> TPoint:
    run, _, shift = text.partition("@")
    step, of, steps = run.partition("/")
    if not of:
        return TPoint(float(run))
    return TPoint.from_step(int(step), int(steps), float(shift or 1))


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


def _window_error(commands) -> None:
    parser = commands.add_parser(
        "window-error",
        help="measure how far decoded windows of a clip are from the whole clip, by --context",
    )
    parser.add_argument("clip", type=Path, help="the clip that a motion LoRA is to learn")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.1, 0.3],
        help="how far the model's prediction is off, in deviations of the latents (default: 0.1 0.3)",
    )  # fmt: skip
    texts, defaults = collect_help(MotionSettings), MotionSettings()
    for name in ("width", "height", "frames", "window"):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{texts[name]} (default: {default})"
        )
    _add_model(parser)
    parser.set_defaults(run=run_window_error)


def run_window_error(args: argparse.Namespace) -> None:
    backend = backend_from(args)
    clip = read_motion_clip(args.clip, (args.width, args.height), args.frames)
    (latents,) = backend.encode_clips([clip.frames])
    latents = latents.to(backend.device)
    decoder = backend.load_decoder()
    for level in args.noise:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
        errors = measure_window_errors(decoder, latents, latents + level * noise, args.window)
        print(f"prediction off by {level} deviations, windows of {args.window} latents")
        print(render_errors(errors))
