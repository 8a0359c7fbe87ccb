"""Options that choose the model, device, precision and folders, and what they open."""

import argparse
from pathlib import Path

from ..miniature.model_files import MINIATURE, MINIATURE_FILES
from ..standalone.backend import StandaloneBackend
from ..standalone.device import DTYPES, choose_device, choose_dtype
from ..standalone.model_files import find_wan_files
from ..standalone.output_file import check_output_folder
from ..storage.tensor_cache import TensorCache
from ..training.ranks import ALONE, Ranks, check_ranks
from .options import add_option, log_notes

NO_MODEL = (
    "No --model is given, so the miniature is used: a tiny model of painted shapes, at its own sizes. Its "
    "LoRAs fit no other model. For a real one give --model, and with a native file --vae and --text-encoder."
)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the model, device, precision and folders."""
    add_option(
        parser,
        "--model",
        "WAN that makes videos from text (1.3B, 14B, TI2V-5B): a diffusers folder, a native DiT file, or the "
        "word miniature.",
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


def open_backend(args: argparse.Namespace, ranks: Ranks = ALONE) -> StandaloneBackend:
    """Find the model that the options name, and choose device, precision and folders.

    `ranks` are the processes that compute a training together. Raises ValueError when a part of the model is
    missing, when nothing can be written to the folders, and when the ranks do not fit the command.
    """
    device = choose_device(args.device)
    check_ranks(ranks, device)
    dtype = choose_dtype(args.dtype, device)
    folders = args.out / "runs", args.cache or args.out / "cache"
    if args.model is None:
        log_notes([NO_MODEL])
    miniature = args.model in (None, MINIATURE)
    files = MINIATURE_FILES if miniature else find_wan_files(args.model, args.vae, args.text_encoder)
    for folder in folders:
        check_output_folder(folder)
    return StandaloneBackend(files, folders[0], TensorCache(folders[1]), device, dtype, ranks)


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
