"""Run one trainer, step by step as the driver says: `python -m tests.benchmarks.peers.worker NAME …`."""

import argparse
from pathlib import Path

import torch

from . import ours, peers
from .turns import Ended, Turns
from .work import SIZES, Work

TRAINERS = ours.TRAINERS | peers.TRAINERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("sizes", choices=SIZES)
    parser.add_argument("weights", type=Path, help="File of the DiT's weights, in native names.")
    parser.add_argument("side", type=int, help="Width and height of the picture in pixels.")
    parser.add_argument("folder", type=Path, nargs="?", help="Folder of the peer's code.")
    args = parser.parse_args()
    torch.manual_seed(0)
    try:
        TRAINERS[args.trainer](Work(SIZES[args.sizes], args.weights, args.side), args.folder, Turns())
    except Ended:
        pass


if __name__ == "__main__":
    main()
