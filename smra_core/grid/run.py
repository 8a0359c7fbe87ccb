"""Run what is missing of a grid: trainings first, and each cell as soon as its LoRAs are there."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from ..storage.atomic_write import write_atomically
from ..storage.file_name import make_file_name
from .command_run import CommandEnd
from .plan import Cell, Plan, Training

log = logging.getLogger("smrabooth")


class Workers(Protocol):
    """What runs commands: the pool of this computer, or a cluster."""

    def has_room(self, gpus: int) -> bool:
        """Return whether a command with so many GPUs can start now."""
        ...

    def start(self, task: Any, command: Sequence[str], log: Path, gpus: int, processes: int = 1) -> None:
        """Start a command, in as many processes as can share its GPUs."""
        ...

    def wait(self) -> tuple[Any, CommandEnd]:
        """Wait until a command ends; return its task and how it ended."""
        ...


class GridEnd(NamedTuple):
    """What a run of a grid has done."""

    made: int
    """Number of trainings and cells that this run made."""
    found: int
    """Number of those that were there before."""
    failed: dict[str, str]
    """Trainings and cells that failed, by name, with the last lines of their logs."""


class GridRun:
    """State of a running grid: what waits, what runs, and what failed."""

    def __init__(self, plan: Plan, workers: Workers):
        self.plan, self.workers = plan, workers
        self.trainings = [each for each in plan.trainings if not self._is_made(each)]
        self.cells = list(plan.cells)
        self.found = len(plan.trainings) - len(self.trainings)
        self.made, self.failed, self.running = 0, dict[str, str](), 0
        self.videos: dict[Path, Cell] = {}
        """Cells that run, by their video."""

    def run(self) -> GridEnd:
        """Run all that is missing, with a bar that shows the time left."""
        total = len(self.trainings) + len(self.cells)
        with tqdm(total=total, desc="grid", unit="task") as bar:
            while True:
                self._start_ready(bar)
                bar.set_postfix_str(f"{self.running} running, {len(self.failed)} failed")
                if not self.running:
                    break
                self._finish(*self.workers.wait())
                bar.update()
        for cell in self.cells:
            self.failed[cell.name] = "A LoRA of it could not be trained."
        return GridEnd(self.made, self.found, self.failed)

    def _start_ready(self, bar: tqdm) -> None:
        gpus = self.plan.file.gpus
        while self.trainings and self.workers.has_room(gpus["training"]):
            training = self.trainings.pop(0)
            self._start(training, training.command, gpus["training"], gpus["training"])
        waiting = []
        for number, cell in enumerate(self.cells):
            if not self.workers.has_room(gpus["cell"]):
                waiting += self.cells[number:]
                break
            if not self.plan.is_ready(cell):
                waiting.append(cell)
                continue
            video = self.plan.find_video(cell)
            if video.is_file() or video in self.videos:
                self.found += 1
                bar.update()
            else:
                self._start_cell(cell, video, gpus["cell"])
        self.cells = waiting

    def _start_cell(self, cell: Cell, video: Path, gpus: int) -> None:
        self.videos[video] = cell
        *command, dashes, prompt = self.plan.make_command(cell)
        self._start(cell, [*command, f"--video={video}", dashes, prompt], gpus)

    def _start(self, task: Training | Cell, command: Sequence[str], gpus: int, processes: int = 1) -> None:
        name = make_file_name(task.name)
        key = task.key if isinstance(task, Training) else self.plan.find_video(task).stem
        messages = self.plan.file.out / "logs" / f"{name}_{key}.log"
        self.workers.start(task, self._insert_json(command), messages, gpus, processes)
        self.running += 1

    def _insert_json(self, command: Sequence[str]) -> list[str]:
        return [command[0], "--json", *command[1:]]

    def _finish(self, task: Training | Cell, end: CommandEnd) -> None:
        self.running -= 1
        if end.code:
            self.failed[task.name] = end.said or f"exit code {end.code}"
            log.error("%s failed (exit code %d): %s", task.name, end.code, end.said)
            return
        self.made += 1
        if isinstance(task, Training):
            about = {"name": task.name, **end.result}
            _write_json(self.plan.file.out / "trainings" / f"{task.key}.json", about)
        else:
            video = self.plan.find_video(task)
            about = {"name": task.name, "prompt": task.prompt, "seed": task.seed, **end.result}
            _write_json(video.with_suffix(".json"), about)

    def _is_made(self, training: Training) -> bool:
        return self.plan.find_lora(training.purpose, training.source) is not None


def _write_json(path: Path, about: dict) -> None:
    with write_atomically(path) as draft:
        draft.write_text(json.dumps(about, indent=1, default=str), encoding="utf-8")
