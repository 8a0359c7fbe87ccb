"""Options of any command: how they are added, and how their text is read."""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..lora.dialects import EXPERTS

log = logging.getLogger("smrabooth")

Value = TypeVar("Value")


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


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose between several LoRAs in one file."""
    add_option(
        parser, "--expert", "Expert of Wan 2.2, where the file holds both.", None, "none", choices=EXPERTS
    )  # fmt: skip
    add_option(
        parser, "--adapter", "Name of the adapter, where the file holds several: spatial_lora.", None, "none"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option with which a command prints its result for scripts."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print the result as one line of JSON, for scripts.",
    )


def print_result(args: argparse.Namespace, path: Path, **more: Any) -> None:
    """Print the path of what a command made; with --json an object that also holds `more`."""
    print(json.dumps({"path": str(path.resolve()), **more}) if args.json else path)


def log_notes(notes: Sequence[str]) -> None:
    """Log each note on a line of its own."""
    for note in notes:
        log.info("note: %s", note)
