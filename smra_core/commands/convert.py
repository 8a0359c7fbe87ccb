"""convert: write a LoRA under the names that another program reads."""

import argparse
from pathlib import Path

from ..lora.writer import DIALECTS_OUT, convert_lora
from ..standalone.output_file import LORA_ENDINGS, check_output_file, check_output_folder
from .options import add_choice, add_json, add_option, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", type=Path, help="LoRA in any dialect, or PEFT's adapter folder.")
    parser.add_argument("target", type=Path, help="File to write, .safetensors; with --to peft, a folder.")
    add_option(
        parser, "--to", "Program whose names are written: comfyui, diffusers, kohya, or peft (a folder).",
        "comfyui", choices=DIALECTS_OUT,
    )  # fmt: skip
    add_choice(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Write a LoRA in another dialect, and print its path."""
    if args.to != "peft":
        check_output_file(args.target, LORA_ENDINGS)
    elif args.target.suffix not in LORA_ENDINGS:  # which the writer refuses for a folder
        check_output_folder(args.target)
    loaded = convert_lora(args.source, args.target, args.to, args.expert, args.adapter)
    print_result(args, args.target, dialect=args.to, modules=len(loaded.lora))
