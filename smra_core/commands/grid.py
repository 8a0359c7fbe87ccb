"""grid: train and sample a grid of subjects, motions, settings and seeds."""

import argparse
import json
import logging
from pathlib import Path
from typing import NoReturn

from ..evaluation.cell_metrics import Networks
from ..evaluation.grid_report import GridReport
from ..grid.grid_file import read_grid_file
from ..grid.local_pool import LocalPool, list_gpus
from ..grid.plan import Cell, Plan, make_options, make_plan
from ..grid.ray_cluster import RayCluster
from ..grid.results import write_results
from ..grid.run import GridEnd, GridRun
from ..miniature.model_files import MINIATURE
from ..miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from ..standalone.output_file import check_output_folder
from ..training.ranks import Ranks
from ..training.train_settings import MOTION_TRAIN, SUBJECT_TRAIN
from . import evaluate, sample, train_motion, train_subject
from .options import add_json, add_option
from .settings_options import read_settings

log = logging.getLogger("smrabooth")

HERE, RAY = "here", "ray"
TRAININGS = {"train-subject": SUBJECT_TRAIN, "train-motion": MOTION_TRAIN}
PARSERS = {
    "train-subject": train_subject, "train-motion": train_motion, "sample": sample, "evaluate": evaluate
}  # fmt: skip


class GridFailed(ValueError):
    """Error for a grid of which some tasks failed; the others are made."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "file", type=Path, help="Grid file (.yaml): subjects, motions, settings, prompts and seeds."
    )
    add_option(
        parser, "--workers", "Commands that run at the same time on a computer without a GPU; with GPUs, "
        "each has its own.", 1, type=int,
    )  # fmt: skip
    add_option(
        parser, "--on", "Where the commands run: in processes here, or as tasks of a Ray cluster, whose "
        "nodes see the folder of the grid and its data under the same paths.", HERE, choices=(HERE, RAY),
    )  # fmt: skip
    add_option(
        parser, "--ray-address", "Address of the Ray cluster: auto, or ray://HOST:10001.",
        shown="one that is started here",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="Show what is there and what is missing, and run nothing."
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Run what is missing of a grid, and print what it made."""
    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}.")
    plan = make_plan(read_grid_file(args.file))
    check_commands(plan)
    networks = choose_networks(plan)
    if args.dry_run:
        _print_plan(plan, args.json)
        return
    check_output_folder(plan.file.out)
    on_ray = args.on == RAY
    pool = RayCluster(args.ray_address, plan.file.out) if on_ray else LocalPool(list_gpus(), args.workers)
    with pool as workers:
        end = GridRun(plan, workers).run()
    _print_end(plan, end, write_results(plan, networks), args.json)


def choose_networks(plan: Plan) -> Networks | None:
    """Return the networks of the metrics: those of `metrics`, or else DINOv2 and SEA-RAFT of the trainings.

    None without any. Raises ValueError for options that `evaluate` does not take.
    """
    given = dict(plan.file.metrics)
    if not given and plan.file.model.get("model") in (None, MINIATURE):
        given = {"dino": DINOV2_FILE, "sea-raft": SEA_RAFT_FILE}
    elif not given:
        dinov2 = plan.file.training["subject"].get("dinov2")
        sea_raft = plan.file.training["motion"].get("sea-raft")
        given = {name: path for name, path in (("dino", dinov2), ("sea-raft", sea_raft)) if path}
    if not given:
        log.info("No metrics: no network is given. Give some in metrics, with the options of evaluate.")
        return None
    options = [*make_options(given), f"--device={plan.file.model.get('device', 'auto')}", "--", "video"]
    args = _make_parser("evaluate").parse_args(options)
    return Networks(" ".join(make_options(given)), lambda: evaluate.load_models(args))


def check_commands(plan: Plan) -> None:
    """Raise ValueError for options that a training or `sample` does not take, before anything runs."""
    commands = {name: _make_parser(name) for name in PARSERS}
    for training in plan.trainings:
        name, *arguments = training.command
        train = read_settings(commands[name].parse_args(arguments), TRAININGS[name])
        Ranks(count=plan.file.gpus["training"]).check_batches(train.accumulate)
    for setting in {cell.setting: cell for cell in plan.cells}.values():
        name, *arguments = plan.make_command(setting)
        commands[name].parse_args(arguments)


def _make_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command, with errors that are ValueErrors."""
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    PARSERS[name].add_options(parser)

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{name}: {message}")

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _print_plan(plan: Plan, as_json: bool) -> None:
    trained = [each for each in plan.trainings if plan.find_lora(each.purpose, each.source)]
    made = [cell for cell in plan.cells if _is_made(plan, cell)]
    counts = {
        "trainings": len(plan.trainings), "trained": len(trained),
        "cells": len(plan.cells), "sampled": len(made),
    }  # fmt: skip
    text = "{trained} of {trainings} trainings and {sampled} of {cells} cells are there."
    print(json.dumps(counts) if as_json else text.format(**counts))


def _is_made(plan: Plan, cell: Cell) -> bool:
    return plan.is_ready(cell) and plan.find_video(cell).is_file()


def _print_end(plan: Plan, end: GridEnd, results: GridReport | None, as_json: bool) -> None:
    files = {} if results is None else {name: path and str(path) for name, path in results._asdict().items()}
    about = {"path": str(plan.file.out), **files, **end._asdict()}
    text = (
        f"{end.made} made, {end.found} were there, {len(end.failed)} failed: {files.get('page', 'no page')}"
    )
    print(json.dumps(about) if as_json else text)
    if end.failed:
        raise GridFailed(
            f"{len(end.failed)} of the grid failed: {', '.join(end.failed)}. Their logs are in "
            f"{plan.file.out / 'logs'}. The same command tries them again."
        )
