"""A pool of processes on this computer, as many at a time as it has GPUs."""

import os
import queue
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .command_run import CommandEnd, run_command

_GPUS = "CUDA_VISIBLE_DEVICES"


def list_gpus() -> list[str]:
    """Return the names of this computer's GPUs that CUDA may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    named = [name for name in os.environ.get(_GPUS, "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]


class LocalPool:
    """Runs commands in processes of their own. Each gets GPUs that no other command of the pool has."""

    def __init__(self, gpus: Sequence[str], workers: int = 1):
        """Take these GPUs; without one, run `workers` commands at a time on the CPU."""
        self._on_gpus, self._free = bool(gpus), list(gpus) or [""] * workers
        self._places = len(self._free)
        self._ended: queue.Queue[tuple[Any, list[str], CommandEnd | BaseException]] = queue.Queue()
        self._processes: dict[int, subprocess.Popen] = {}
        """Running processes by the id of their task, which need not be hashable."""
        self._is_closed = False

    def __enter__(self) -> "LocalPool":
        return self

    def has_room(self, gpus: int) -> bool:
        """Return whether a command with so many GPUs can start now.

        Raises ValueError if there are fewer GPUs in all.
        """
        if self._on_gpus and gpus > self._places:
            raise ValueError(f"A task needs {gpus} GPUs, and this computer has {self._places}. Lower gpus.")
        return len(self._free) >= self._count(gpus)

    def start(self, task: Any, command: Sequence[str], log: Path, gpus: int, processes: int = 1) -> None:
        """Start a command; `wait` returns the task with its end. Without GPUs it is always one process."""
        taken = [self._free.pop() for _ in range(self._count(gpus))]
        environment = {_GPUS: ",".join(taken)} if self._on_gpus else {}

        def run() -> None:
            try:
                count = processes if self._on_gpus else 1
                end = run_command(
                    command, log, environment, lambda each: self._keep(task, each), processes=count
                )
                self._ended.put((task, taken, end))
            except BaseException as error:
                self._ended.put((task, taken, error))

        threading.Thread(target=run, daemon=True).start()

    def wait(self) -> tuple[Any, CommandEnd]:
        """Wait until a command ends; return its task and how it ended."""
        task, taken, end = self._ended.get()
        self._free += taken
        self._processes.pop(id(task), None)
        if isinstance(end, BaseException):
            raise end
        return task, end

    def __exit__(self, *exception) -> None:
        """Stop what still runs: each saves its last step, as it does at an interrupt."""
        self._is_closed = True
        for process in list(self._processes.values()):
            _stop(process)
        for process in list(self._processes.values()):
            process.wait()

    def _count(self, gpus: int) -> int:
        return gpus if self._on_gpus else 1

    def _keep(self, task: Any, process: subprocess.Popen) -> None:
        self._processes[id(task)] = process
        if self._is_closed:
            _stop(process)


def _stop(process: subprocess.Popen) -> None:
    with suppress(OSError, ValueError):
        process.stdin.close()  # type: ignore[union-attr]
