"""inspect: show what a LoRA file contains."""

import argparse
import dataclasses
import json
from pathlib import Path

from ..lora.reader import load_lora
from ..lora.report import describe_lora, render_report
from .options import add_choice, add_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, help="LoRA file in any dialect, or PEFT's adapter folder.")
    add_choice(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print a report on a LoRA file."""
    report = describe_lora(load_lora(args.file, None, args.expert, args.adapter))
    print(json.dumps(dataclasses.asdict(report)) if args.json else render_report(report))
