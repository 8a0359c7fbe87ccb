"""Options that several commands share: what they are called, how their text is read, what they open."""

import argparse
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .data.frame_rate import WAN_FPS, check_frame_rate
from .lora.dialects import EXPERTS
from .lora.plan import SparsePlan
from .lora.schedule import Strengths, TPoint
from .miniature import small_settings
from .miniature.model_files import MINIATURE, MINIATURE_FILES
from .standalone.backend import StandaloneBackend
from .standalone.device import DTYPES, choose_device, choose_dtype
from .standalone.model_files import find_wan_files
from .standalone.output_file import check_output_folder
from .storage.tensor_cache import TensorCache
from .training.mora import MotionSettings
from .training.sura import SubjectSettings
from .wan.sampler import SamplingSettings

log = logging.getLogger("smrabooth")

Settings = TypeVar("Settings")
Value = TypeVar("Value")
KEEP_FRAMES = "keep"

MINIATURE_SIZES: Mapping[type, Any] = {
    SubjectSettings: small_settings.SUBJECT,
    MotionSettings: small_settings.MOTION,
    SamplingSettings: small_settings.SAMPLING,
}
"""Settings whose sizes are the defaults for the miniature."""
SIZES = ("width", "height", "frames")

NO_MODEL = (
    "No --model is given, so the miniature is used: a tiny model of painted shapes, at its own sizes. Its "
    "LoRAs fit no other model. For a real one give --model, and with a native file --vae and --text-encoder."
)


def add_option(
    parser: argparse.ArgumentParser, name: str, text: str, default: Any = None, shown: str = "", **arguments
) -> None:
    """Add an option whose help is `text` with the default behind it.

    `shown` is said in place of the default, for one that is not a constant or not a plain value.
    """
    if default is not None or shown:
        text = f"{text} (default: {shown or default})"
    parser.add_argument(name, default=default, help=text.replace("%", "%%"), **arguments)


def wrap_parser(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return `parse` with its ValueError as the error whose text argparse shows."""

    def parse_option(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_option


def add_settings(parser: argparse.ArgumentParser, defaults: Any, names: Sequence[str] = ()) -> None:
    """Add an option for each field of a settings dataclass, or for those named, with default and help.

    An option that is not given is None, so that `read_settings` can choose the default by the model.
    """
    small = MINIATURE_SIZES.get(type(defaults))
    for field in dataclasses.fields(defaults):
        if names and field.name not in names:
            continue
        option, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        default = getattr(defaults, field.name)
        if isinstance(default, bool):
            text = f"{text} (default: {'on' if default else 'off'})".replace("%", "%%")
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=text, default=None)
            continue
        value_type = wrap_parser(SparsePlan.parse) if isinstance(default, SparsePlan) else type(default)
        shown = str(default)
        if small is not None and field.name in SIZES:
            shown += f"; {getattr(small, field.name)} for the miniature"
        add_option(parser, option, text, shown=shown, type=value_type)


def read_settings(args: argparse.Namespace, defaults: Settings) -> Settings:
    """Return `defaults` with the options that were given and that `add_settings` added.

    The sizes of the miniature are its own, unless they are given. Raises ValueError for bad values.
    """
    small = MINIATURE_SIZES.get(type(defaults))
    values = {}
    if small is not None and args.model in (None, MINIATURE):
        values = {name: getattr(small, name) for name in SIZES if hasattr(small, name)}
    for field in dataclasses.fields(defaults):  # type: ignore[arg-type]
        given = getattr(args, field.name, None)
        if given is not None:
            values[field.name] = given
    return dataclasses.replace(defaults, **values)  # type: ignore[type-var]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the model, device, precision and folders."""
    add_option(
        parser,
        "--model",
        "WAN 2.1: a diffusers folder, a native DiT file, or the word miniature.",
        shown="the miniature, a tiny model of painted shapes to try things on",
    )
    add_option(parser, "--vae", "Native VAE file. Needed if --model is a file.")
    add_option(
        parser,
        "--text-encoder",
        "UMT5: a file, or a folder with the model and its tokenizer. Needed if --model is a file.",
    )
    add_option(
        parser, "--device", "Device to compute on: cpu, cuda, cuda:1 …", "auto", "auto, a GPU if there is one"
    )
    add_option(
        parser,
        "--dtype",
        "Precision of the frozen model.",
        "auto",
        "auto, float32 on a CPU, else bfloat16 or float16",
        choices=["auto", *DTYPES],
    )
    add_option(
        parser, "--out", "Folder for results: a folder of each run in runs/, and the cache.",
        Path("smra_output"), type=Path,
    )  # fmt: skip
    add_option(
        parser, "--cache", "Folder of encoded inputs, shared by all runs.", shown="OUT/cache", type=Path
    )


def open_backend(args: argparse.Namespace) -> StandaloneBackend:
    """Find the model that the options name, and choose device, precision and folders.

    Raises ValueError when a part of the model is missing, or when nothing can be written to the folders.
    """
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    folders = args.out / "runs", args.cache or args.out / "cache"
    if args.model is None:
        log_notes([NO_MODEL])
    miniature = args.model in (None, MINIATURE)
    files = MINIATURE_FILES if miniature else find_wan_files(args.model, args.vae, args.text_encoder)
    for folder in folders:
        check_output_folder(folder)
    return StandaloneBackend(files, folders[0], TensorCache(folders[1]), device, dtype)


def choose_encoder_file(
    name: str, option: str, given: Path | None, model: str | None, miniature_file: Path
) -> Path:
    """Return the weight file given with `option`, or the miniature's own if the model is the miniature.

    Raises ValueError when another model is trained and no file is given, or when the file does not exist.
    """
    if given is None and model in (None, MINIATURE):
        return miniature_file
    if given is None:
        raise ValueError(
            f"Training on {model} needs the weights of {name}. Give their file with {option} FILE."
        )
    check_weight_file(name, option, given)
    return given


def check_weight_file(name: str, option: str, given: Path | None) -> None:
    """Raise ValueError when a path that was given is not a file."""
    if given is not None and not given.is_file():
        raise ValueError(f"{given} is not a file. Give the weights of {name} with {option} FILE.")


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose between several LoRAs in one file."""
    add_option(
        parser, "--expert", "Expert of Wan 2.2, where the file holds both.", None, "none", choices=EXPERTS
    )  # fmt: skip
    add_option(
        parser, "--adapter", "Name of the adapter, where the file holds several: spatial_lora.", None, "none"
    )


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


def parse_strengths(text: str) -> Strengths:
    """Return the strengths that a text gives, `early,late` or one number for both.

    Raises ValueError for anything else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2):
        raise ValueError(f"{text!r} is no strength. Give one number, or two as early,late.")
    return Strengths(values[0], values[-1])


def parse_t_point(text: str) -> TPoint:
    """Return T_point from a sigma, or from a step as `15/50` or `15/50@5` at shift 5.

    Raises ValueError for anything else.
    """
    run, _, shift = text.partition("@")
    step, is_step, steps = run.partition("/")
    try:
        if not is_step:
            return TPoint(float(run))
        return TPoint.from_step(int(step), int(steps), float(shift or 1))
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no noise level ({error}). Give a sigma such as 0.7, a step such as 15/50, or "
            "15/50@5 for shift 5."
        ) from error


def log_notes(notes: Sequence[str]) -> None:
    """Log each note on a line of its own."""
    for note in notes:
        log.info("note: %s", note)
