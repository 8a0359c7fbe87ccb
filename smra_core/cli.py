"""The command line: train-subject, train-motion, sample, demo, inspect, convert, window-error."""

import argparse
import io
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import __version__
from .cli_options import (
    add_choice,
    add_model,
    add_option,
    add_settings,
    check_weight_file,
    choose_encoder_file,
    log_notes,
    open_backend,
    parse_frame_rate,
    parse_strengths,
    parse_t_point,
    read_settings,
    wrap_parser,
)
from .data.frame_rate import WAN_FPS
from .data.motion_clip import read_motion_clip
from .data.subject_set import describe_new_masks, read_subject_set
from .data.video import write_video
from .decoding.window_error import measure_window_errors, render_errors
from .lora.adapter import restrict
from .lora.choice import RELEASE_ADAPTERS
from .lora.plan import SparsePlan
from .lora.reader import load_lora
from .lora.report import describe_lora, render_report
from .lora.schedule import (
    MOTION_STRENGTHS,
    STRENGTH_PRESETS,
    ScheduledLora,
    TPoint,
    describe_run,
)
from .lora.writer import DIALECTS_OUT, convert_lora
from .miniature.demo import run_demo
from .miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from .standalone.generate import Variant, generate
from .standalone.output_file import (
    LORA_ENDINGS,
    VIDEO_ENDINGS,
    check_output_file,
    check_output_folder,
    write_or_rescue,
)
from .standalone.progress_bar import TrainingBar
from .storage.file_name import make_file_name
from .training.model_fit import check_fit
from .training.mora import MotionSettings
from .training.motion import train_motion
from .training.subject import find_missing_masks, train_subject
from .training.sura import SubjectSettings
from .training.trainer import MOTION_TRAIN, SUBJECT_TRAIN
from .wan.flow_matching import sampling_sigmas
from .wan.sampler import SamplingSettings
from .wan.settings import NOT_NEGATIVE

log = logging.getLogger("smrabooth")

CONTINUES = "Run the command again to continue from the last saved step."
STARTS_OVER = "Nothing was written. The same command starts from the beginning."
"""What is true after an interrupt: of a training, and of a command that writes its result at the end."""
DEMO_CONTINUES = "The same command continues the trainings; what was sampled is sampled again."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    It is 0 on success, 1 for bad input, of which one line says what is wrong, and 130 when interrupted; steps
    that were trained and saved are kept.
    """
    _enable_all_letters()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        print(f"error: Out of memory. Lower the frames, or the width and height. ({error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted. {args.after_interrupt}", file=sys.stderr)
        return 130
    return 0


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a plain RuntimeError means full memory, as on a CPU and on a Mac's GPU it does."""
    return any(words in str(error) for words in ("out of memory", "can't allocate memory"))


def _enable_all_letters() -> None:
    """Let streams write letters that the console or pipe lacks as escapes, instead of raising an error.

    Windows encodes pipes in a code page of a few hundred letters, and a file name on Linux may hold bytes
    that are no letters.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; each sets `run` to the function that runs it."""
    parser = argparse.ArgumentParser(prog="python -m smra_core", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (
        _add_train_subject, _add_train_motion, _add_sample, _add_demo, _add_inspect, _add_convert,
        _add_window_error,
    ):  # fmt: skip
        add(commands)
    return parser


def _add_command(
    commands: Any,
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], None],
    after_interrupt: str = STARTS_OVER,
) -> Any:
    """Add a command that calls `run` with the parsed options; return its parser.

    `after_interrupt` says what an interrupt leaves behind.
    """
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run, after_interrupt=after_interrupt)
    return parser


def _add_train_subject(commands: Any) -> None:
    text = "Train a subject LoRA on a folder of images."
    parser = _add_command(commands, "train-subject", text, run_train_subject, CONTINUES)
    parser.add_argument(
        "folder", type=Path, help="Folder of images, with masks/ and metadata.csv or .txt captions."
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
    add_option(parser, "--name", "Name of the run.", shown="the folder's name")
    add_settings(parser, SubjectSettings())
    add_settings(parser, SUBJECT_TRAIN)
    add_model(parser)


def run_train_subject(args: argparse.Namespace) -> None:
    """Train a subject LoRA, and print the path of its file."""
    settings, train = read_settings(args, SubjectSettings()), read_settings(args, SUBJECT_TRAIN)
    name = make_file_name(args.name or args.folder.resolve().name)
    check_weight_file("SAM", "--sam", args.sam)
    backend = open_backend(args)
    check_fit(settings, backend.spec)
    dinov2 = (
        choose_encoder_file("DINOv2", "--dinov2", args.dinov2, args.model, DINOV2_FILE)
        if settings.sura_weight
        else None
    )
    subject = read_subject_set(args.folder, (settings.width, settings.height), caption=args.caption)
    log_notes(subject.notes)
    images = find_missing_masks(subject.images, args.sam, backend)
    log_notes(describe_new_masks(subject.images, images))
    with TrainingBar("subject LoRA") as report:
        trained = train_subject(backend, images, dinov2, settings, train, name, report)
    print(trained.path)


def _add_train_motion(commands: Any) -> None:
    text = "Train a motion LoRA on a clip."
    parser = _add_command(commands, "train-motion", text, run_train_motion, CONTINUES)
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


def run_train_motion(args: argparse.Namespace) -> None:
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
        trained = train_motion(backend, clip, sea_raft, settings, train, name, report, args.tiny_decoder)
    print(trained.path)


def _add_sample(commands: Any) -> None:
    parser = _add_command(commands, "sample", "Make a video with a subject and a motion LoRA.", run_sample)
    parser.add_argument("prompt", help="Prompt, such as 'a sks dog is vvt walking on the moon'.")
    add_option(parser, "--negative", "What the video should not show.", "", "nothing")
    add_option(parser, "--subject", "Subject LoRA file.", type=Path)
    add_option(parser, "--motion", "Motion LoRA file.", type=Path)
    add_option(
        parser, "--preset", "Strengths of the subject LoRA before and after T_point.", "paper",
        choices=STRENGTH_PRESETS,
    )  # fmt: skip
    add_option(
        parser, "--subject-strength",
        "Strengths of the subject LoRA, early,late or one number for both. They replace the preset's.",
        type=wrap_parser(parse_strengths),
    )  # fmt: skip
    add_option(
        parser, "--motion-strength", "Strengths of the motion LoRA, early,late or one number for both.",
        MOTION_STRENGTHS, f"{MOTION_STRENGTHS.early},{MOTION_STRENGTHS.late}",
        type=wrap_parser(parse_strengths),
    )  # fmt: skip
    for purpose in ("subject", "motion"):
        add_option(
            parser, f"--{purpose}-plan", f"Plan of the {purpose} LoRA's layers to use, such as q,k,ffn.0.",
            shown="all that the file has", type=wrap_parser(SparsePlan.parse),
        )  # fmt: skip
    add_option(
        parser, "--t-point",
        "Noise level at which the strengths switch: a sigma (0.7), or a step of a run (15/50, or 15/50@5 at "
        "shift 5).",
        TPoint(), str(TPoint().sigma), type=wrap_parser(parse_t_point),
    )  # fmt: skip
    add_option(parser, "--video", "Video file to write, .mp4.", Path("video.mp4"), type=Path)
    add_settings(parser, SamplingSettings())
    add_model(parser)


def run_sample(args: argparse.Namespace) -> None:
    """Sample a video, write it and print its path."""
    settings = read_settings(args, SamplingSettings())
    # H.264 of 8 bits and 4:2:0 takes far less than the pixels themselves, 1.5 bytes each.
    size = settings.frames * settings.width * settings.height * 3 // 2
    check_output_file(args.video, VIDEO_ENDINGS, size)
    backend = open_backend(args)
    subject_strengths = args.subject_strength or STRENGTH_PRESETS[args.preset]
    chosen = [
        ("subject", args.subject, args.subject_plan, subject_strengths),
        ("motion", args.motion, args.motion_plan, args.motion_strength),
    ]
    spec = backend.spec
    loras = tuple(
        ScheduledLora(
            restrict(load_lora(path, spec, adapter=RELEASE_ADAPTERS[purpose]).lora, plan, path.name),
            strengths,
        )
        for purpose, path, plan, strengths in chosen
        if path is not None
    )
    variant = Variant("video", "", loras, args.t_point)
    if loras:
        log.info("%s", describe_run(args.t_point, sampling_sigmas(settings.steps, settings.shift).tolist()))
    with tqdm(total=settings.steps, desc="sampling", unit="step") as bar:
        videos = generate(backend, [args.prompt], [variant], settings, args.negative, lambda *_: bar.update())
    print(write_or_rescue(args.video, lambda path: write_video(path, videos["video"][0], settings.fps)))


def _add_demo(commands: Any) -> None:
    text = "Run the whole method on the miniature, in minutes, and write a report."
    parser = _add_command(commands, "demo", text, run_demo_command, DEMO_CONTINUES)
    add_option(parser, "--out", "Folder for LoRAs, videos and the report.", Path("smra_demo"), type=Path)
    add_option(
        parser, "--subject", "Folder of your own subject, as for train-subject.", shown="a ball", type=Path
    )
    add_option(
        parser, "--motion", "Your own clip or its folder, as for train-motion.", shown="a zigzag", type=Path
    )
    add_option(parser, "--prompt", "Prompt to sample.", shown="made of the two captions")
    add_option(parser, "--subject-caption", "Caption of all your pictures, in place of those in the folder.")
    add_option(parser, "--motion-caption", "Caption of your clip, in place of the one beside it.")


def run_demo_command(args: argparse.Namespace) -> None:
    """Run the demo, and print the path of its report."""
    captions = args.subject_caption, args.motion_caption
    print(run_demo(args.out, args.subject, args.motion, args.prompt, *captions))


def _add_inspect(commands: Any) -> None:
    parser = _add_command(commands, "inspect", "Show what a LoRA file contains.", run_inspect)
    parser.add_argument("file", type=Path, help="LoRA file in any dialect, or PEFT's adapter folder.")
    add_choice(parser)


def run_inspect(args: argparse.Namespace) -> None:
    """Print a report on a LoRA file."""
    print(render_report(describe_lora(load_lora(args.file, None, args.expert, args.adapter))))


def _add_convert(commands: Any) -> None:
    text = "Write a LoRA under the names that another program reads."
    parser = _add_command(commands, "convert", text, run_convert)
    parser.add_argument("source", type=Path, help="LoRA in any dialect, or PEFT's adapter folder.")
    parser.add_argument("target", type=Path, help="File to write, .safetensors; with --to peft, a folder.")
    add_option(
        parser, "--to", "Program whose names are written: comfyui, diffusers, kohya, or peft (a folder).",
        "comfyui", choices=DIALECTS_OUT,
    )  # fmt: skip
    add_choice(parser)


def run_convert(args: argparse.Namespace) -> None:
    """Write a LoRA in another dialect."""
    if args.to != "peft":
        check_output_file(args.target, LORA_ENDINGS)
    elif args.target.suffix not in LORA_ENDINGS:  # which the writer refuses for a folder
        check_output_folder(args.target)
    convert_lora(args.source, args.target, args.to, args.expert, args.adapter)


def _add_window_error(commands: Any) -> None:
    text = "Measure how far decoded windows of a clip are from the whole clip, for each --context."
    parser = _add_command(commands, "window-error", text, run_window_error)
    parser.add_argument("clip", type=Path, help="The clip that a motion LoRA is to be trained on.")
    add_option(
        parser, "--noise",
        "Standard deviations of the noise that makes a prediction of the clip's latents, in units of theirs.",
        [0.1, 0.3], "0.1 0.3", type=float, nargs="+",
    )  # fmt: skip
    add_settings(parser, MotionSettings(), ("width", "height", "frames", "window"))
    add_model(parser)


def run_window_error(args: argparse.Namespace) -> None:
    """Print the errors of windows, a table for each noise level."""
    settings = read_settings(args, MotionSettings())
    if not all(NOT_NEGATIVE.holds(level) for level in args.noise):
        raise ValueError(f"--noise must be finite and at least 0, got {args.noise}. The default is 0.1 0.3.")
    backend = open_backend(args)
    clip = read_motion_clip(args.clip, (settings.width, settings.height), settings.frames)
    (latents,) = backend.encode_clips([clip.frames])
    latents = latents.to(backend.device)
    decoder = backend.load_decoder()
    for level in args.noise:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
        errors = measure_window_errors(decoder, latents, latents + level * noise, settings.window)
        print(f"Noise of {level} standard deviations, windows of {settings.window} latents:")
        print(render_errors(errors))
