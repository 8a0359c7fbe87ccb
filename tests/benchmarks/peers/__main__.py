"""A plain LoRA step beside those of other trainers: CPU time, FLOPs and memory on the same model and linears.

    python -m tests.benchmarks.peers [--comfyui PATH] [--musubi PATH] [--diffsynth PATH] [--side 512]

The DiT has two blocks of the 1.3B's width (with `--sizes tiny` 30 of width 128, where Python and the calls of
torch are all there is) and random weights, in one file that all read. Each trains the ten linears of a block
at rank 32 on the latents of one picture, in float32 on one CPU thread, through its own model, LoRA modules,
loss and clipping, and torch's AdamW. Every trainer has a process of its own and they take turns, in a new
order each round, so that what else the machine does meets all of them. Setting up is left out, and so is each
one's first step. Peak memory is what a step adds to the loaded model. What cannot be run is named and left
out.

ComfyUI's node also trains norms, biases and the layers around the blocks, which it cannot leave out. All of
the peers recompute every block in the backward pass.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

from . import ours, peers
from .turns import Trainer
from .work import SIZES, write_weights

PEERS = tuple(peers.TRAINERS)
FOLDERS = {"ours-in-host": "comfyui", "node": "comfyui", "diffsynth": "diffsynth", "musubi": "musubi"}
"""Option that gives the folder of a trainer's code, by the start of its name."""
CLOSE = 1e-3
"""Largest difference of velocities about 1 that rounding can make."""


def find_option(name: str) -> str | None:
    """Return the name of the option with a trainer's folder; None if it needs none."""
    return next((option for start, option in FOLDERS.items() if name.startswith(start)), None)


def start_trainers(args: argparse.Namespace, weights: Path) -> list[Trainer]:
    """Start the trainers that are asked for, and name those that cannot run here."""
    started = []
    for name in args.trainers:
        option = find_option(name)
        folder = getattr(args, option) if option else None
        if option and folder is None:
            print(f"left out: {name}, as --{option} is not given")
            continue
        arguments = [args.sizes, str(weights), str(args.side), *([str(folder)] if folder else [])]
        started.append(Trainer(name, args.python, arguments))
    loaded = [trainer for trainer in started if trainer.load()]
    for trainer in started:
        if trainer not in loaded:
            print(f"left out: {trainer.name}: {trainer.explain()}")
    return loaded


def take_turns(trainers: list[Trainer], rounds: int) -> None:
    """Let all train a step each in every round, and one more before the first that does not count."""
    for _ in range(rounds + 1):
        order = random.sample(trainers, len(trainers))
        for trainer in order:
            if not trainer.take_turn():
                print(f"left out: {trainer.name}: {trainer.explain()}")
                trainers.remove(trainer)


def print_differences(trainers: list[Trainer]) -> None:
    """Print how far the models' velocities for the same input are apart; raise ValueError if they differ."""
    shown = {t.name: t.about["velocity"] for t in trainers if "velocity" in t.about}
    if not shown:
        return
    first = next(iter(shown.values()))
    far = {
        name: max(abs(a - b) for a, b in zip(first, values, strict=True)) for name, values in shown.items()
    }
    if max(far.values()) > CLOSE:
        raise ValueError(f"These do not run the same model; their velocities differ by {far}.")
    print(f"Velocities for the same input differ by at most {max(far.values()):.0e}.\n")


def print_table(trainers: list[Trainer]) -> None:
    """Print a row for each trainer, with the ratio of the first one's time to its own."""
    rows = {trainer.name: [step["seconds"] for step in trainer.steps[1:]] for trainer in trainers}
    base = next(iter(rows.values()))
    print("| trainer | CPU s a step, median (low..high) | first / it | round by round | GFLOP | peak MiB |")
    print("|---|---|---|---|---|---|")
    for trainer in trainers:
        seconds = rows[trainer.name]
        ratios = [own / its for own, its in zip(base, seconds, strict=True)]
        print(
            f"| {trainer.name} | {statistics.median(seconds):.2f} ({min(seconds):.2f}..{max(seconds):.2f}) "
            f"| {statistics.median(ratios):.2f} | {' '.join(f'{ratio:.2f}' for ratio in ratios)} "
            f"| {trainer.steps[0]['flops'] / 1e9:.1f} "
            f"| {max(step['bytes'] for step in trainer.steps[1:]) / 2**20:.0f} |"
        )
    print_best(rows)


def print_best(rows: dict[str, list[float]]) -> None:
    """Print each of this project's ways relative to the fastest peer, the median over the rounds."""
    medians = {name: statistics.median(rows[name]) for name in PEERS if name in rows}
    if not medians:
        return
    best = min(medians, key=medians.get)
    print()
    for name in ours.TRAINERS.keys() & rows.keys():
        ratio = statistics.median(own / its for own, its in zip(rows[name], rows[best], strict=True))
        print(f"{name} / {best}: {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for option in dict.fromkeys(FOLDERS.values()):
        default = os.environ.get(f"{option.upper()}_PATH")
        parser.add_argument(f"--{option}", type=Path, metavar="PATH", default=default and Path(default))
    parser.add_argument("--sizes", choices=SIZES, default="wide", help="Sizes of the DiT. (default: wide)")
    parser.add_argument("--side", type=int, default=512, help="Width and height in pixels. (default: 512)")
    parser.add_argument("--rounds", type=int, default=5, help="Timed steps of each. (default: 5)")
    parser.add_argument("--python", default=sys.executable, help="Interpreter that has what they import.")
    names = [*ours.TRAINERS, *PEERS]
    parser.add_argument("--trainers", nargs="+", choices=names, default=names, metavar="NAME", help=names)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "dit.safetensors"
        write_weights(weights, SIZES[args.sizes])
        trainers = start_trainers(args, weights)
        if not trainers:
            raise SystemExit("None of the trainers can run here.")
        print_differences(trainers)
        take_turns(trainers, args.rounds)
        print_table(trainers)
        for trainer in trainers:
            trainer.stop()


if __name__ == "__main__":
    main()
