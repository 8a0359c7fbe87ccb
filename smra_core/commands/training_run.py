"""How both trainings run: as one process or as several ranks, of which the first prints the result."""

import argparse
from collections.abc import Callable

from ..training.job import TrainedLora
from ..training.ranks import Ranks, join_ranks
from .options import print_result


def run_training(args: argparse.Namespace, train: Callable[[argparse.Namespace, Ranks], TrainedLora]) -> None:
    """Train as one of the ranks, and print the path of the LoRA; with --json its losses, steps and notes."""
    with join_ranks() as ranks:
        trained = train(args, ranks)
        if ranks.is_first:
            losses, notes = str(trained.losses.resolve()), list(trained.notes)
            print_result(args, trained.path, losses=losses, steps=trained.steps, notes=notes)
