"""demo: run the whole method on the miniature."""

import argparse
from pathlib import Path

from ..miniature.demo import run_demo
from .options import add_json, add_option, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
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
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Run the demo, and print the path of its report."""
    captions = args.subject_caption, args.motion_caption
    print_result(args, run_demo(args.out, args.subject, args.motion, args.prompt, *captions))
