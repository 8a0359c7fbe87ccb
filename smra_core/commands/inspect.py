"""inspect: show what a LoRA file contains."""

import argparse
from pathlib import Path

from ..lora.reader import load_lora
from ..lora.report import describe_lora, render_report
from .options import add_choice


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, help="LoRA file in any dialect, or PEFT's adapter folder.")
    add_choice(parser)


def run(args: argparse.Namespace) -> None:
    """Print a report on a LoRA file."""
    print(render_report(describe_lora(load_lora(args.file, None, args.expert, args.adapter))))
