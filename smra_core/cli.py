"""Train, combine and measure subject and motion LoRAs for WAN without ComfyUI."""

import argparse
import importlib
import io
import logging
import sys
from collections.abc import Sequence

from . import __version__

CONTINUES = "Run the command again to continue from the last saved step."
STARTS_OVER = "Nothing was written. The same command starts from the beginning."
"""What is true after an interrupt: of a training, and of a command that writes its result at the end."""
DEMO_CONTINUES = "The same command continues the trainings; what was sampled is sampled again."
GRID_CONTINUES = "The same command continues with what is missing."

COMMANDS = {
    "train-subject": ("Train a subject LoRA on a folder of pictures and clips.", CONTINUES),
    "train-motion": ("Train a motion LoRA on a clip or a folder of clips.", CONTINUES),
    "sample": ("Make a video with a subject and a motion LoRA.", STARTS_OVER),
    "grid": ("Train and sample a grid of subjects, motions, settings and seeds.", GRID_CONTINUES),
    "demo": ("Run the whole method on the miniature, in minutes, and write a report.", DEMO_CONTINUES),
    "evaluate": ("Measure videos by the paper's metrics.", STARTS_OVER),
    "side-effects": (
        "Measure whether a motion LoRA leaks the look of its clip, and whether a subject LoRA makes videos "
        "stand still.",
        STARTS_OVER,
    ),
    "inspect": ("Show what a LoRA file contains.", STARTS_OVER),
    "convert": ("Write a LoRA under the names that another program reads.", STARTS_OVER),
    "window-error": (
        "Measure how far decoded windows of a clip are from the whole clip, for each --context.",
        STARTS_OVER,
    ),
    "probe-layers": ("Measure what each kind of layer of a LoRA contributes, and print a plan.", STARTS_OVER),
}
"""Commands with their help, and what an interrupt leaves behind. Each is a module of `commands`."""


class CommandParser(argparse.ArgumentParser):
    """Parser of one command, whose module is imported only when that command is parsed.

    Importing all of them takes ten seconds, which a call of another command or of --help need not wait for.
    """

    command = ""

    def parse_known_args(self, args=None, namespace=None):
        """Add the command's options and parse them; `run` becomes the function that runs the command."""
        if self.command:
            module = importlib.import_module(f".commands.{self.command.replace('-', '_')}", __package__)
            module.add_options(self)
            self.set_defaults(run=module.run)
            self.command = ""
        return super().parse_known_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    It is 0 on success, 1 for bad input, of which one line says what is wrong, 75 when another process trains
    the same run, and 130 when interrupted; steps that were trained and saved are kept.
    """
    _enable_all_letters()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        print(f"error: {_explain_full_memory(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted. {args.after_interrupt}", file=sys.stderr)
        return 130
    return 0


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory was full; on a CPU and on a Mac's GPU that is a plain RuntimeError."""
    words = ("out of memory", "can't allocate memory")
    return _is_torchs_own(error) or any(word in str(error) for word in words)


def _explain_full_memory(error: RuntimeError) -> str:
    """Return what to do when memory is full; the training loop's own error says it already."""
    if _is_torchs_own(error):
        return str(error)
    return f"Out of memory. Lower the frames, or the width and height. ({error})"


def _is_torchs_own(error: RuntimeError) -> bool:
    # By name, because torch is not imported here.
    return type(error).__name__ == "OutOfMemoryError"


def _enable_all_letters() -> None:
    """Let streams write letters that the console or pipe lacks as escapes, instead of raising an error.

    Windows encodes pipes in a code page of a few hundred letters, and a file name on Linux may hold bytes
    that are no letters.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; the one that is parsed sets `run` to the function that runs it."""
    parser = argparse.ArgumentParser(prog="python -m smra_core", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=CommandParser)
    for name, (text, after_interrupt) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(after_interrupt=after_interrupt)
        command.command = name
    return parser
