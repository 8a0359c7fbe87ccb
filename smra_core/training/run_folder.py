"""The state of a training run on disk: nothing that was trained is ever lost or half-written."""

import csv
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..storage.atomic_write import write_atomically
from .state import TrainState

log = logging.getLogger("smrabooth")

STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"
LOSSES, ABOUT, LOCK, FINISHED = "losses.csv", "run.json", "lock", "finished"
_LOCKED_BYTE = 1024
"""Windows lets nobody read what is locked: a byte behind the number of the process."""


class RunFolder:
    """Folder of one run, named after everything that the run depends on.

    The same data, settings and base model come back to the same folder and go on there; a change of any of
    them is another run.
    """

    def __init__(self, root: Path, name: str, parts: Mapping[str, Any]):
        """`parts` is made of JSON values: settings and content hashes."""
        text = json.dumps(parts, sort_keys=True, indent=1, allow_nan=False)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.path = Path(root) / f"{name}-{self.fingerprint[:12]}"
        self._saved: int | None = None
        self.path.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.path / ABOUT) as draft:
            draft.write_text(text, encoding="utf-8")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else out; ValueError when somebody is at work here.

        The system drops the lock with the process, however that ends, so that a kill leaves none behind.
        """
        with open(self.path / LOCK, "a+", encoding="utf-8") as lock:
            if not _try_lock(lock):
                owner = _number(self.path / LOCK)
                raise ValueError(
                    f"Process {owner} is training in {self.path}. Wait for it, or stop it; its steps are "
                    "kept."
                )
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def finished_steps(self) -> int:
        """Steps of the run that was last finished here, LoRA file and all; 0 when none was."""
        return _number(self.path / FINISHED) or 0

    def finish(self, steps: int) -> None:
        """Say that the LoRA of this many steps is written."""
        with write_atomically(self.path / FINISHED) as draft:
            draft.write_text(str(steps))

    def restore(self, state: TrainState) -> None:
        """Bring a state to where this run stopped; untouched when the run is new."""
        for name in (STATE, PREVIOUS):
            try:
                tensors = load_file(self.path / name)
            except FileNotFoundError:
                continue
            except SafetensorError as error:
                log.warning("%s cannot be read (%s); going back to the one before.", name, error)
                continue
            state.load(tensors)
            self._saved = state.step if name == STATE else None
            self._forget_losses_after(state.step)
            return

    def save(self, state: TrainState) -> None:
        """Write the state, unless this step is written already; the one before stays beside it."""
        if state.step == self._saved:
            return
        current = self.path / STATE
        if current.is_file():
            with write_atomically(self.path / PREVIOUS) as draft:
                _link_or_copy(current, draft)
        with write_atomically(current) as draft:
            save_file(state.tensors(), draft)
        self._saved = state.step

    def log_losses(self, step: int, losses: Mapping[str, float]) -> None:
        """Add a line to losses.csv, whose columns are `step` and the losses' names."""
        path = self.path / LOSSES
        new = not path.is_file()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *losses])
            writer.writerow([step, *(f"{value:.6g}" for value in losses.values())])

    def _forget_losses_after(self, step: int) -> None:
        """Steps past the restored state will be done, and logged, again."""
        path = self.path / LOSSES
        if not path.is_file():
            return
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        # A kill can leave the last line cut short.
        whole = [row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= step]
        with write_atomically(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *whole])


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _try_lock(file: TextIO) -> bool:
    """Whether the open file is now this one's alone; also where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.warning("%s cannot be locked (%s); start no second run of the same.", file.name, error)
    return True


def read_losses(path: str | Path) -> dict[str, list[float]]:
    """Columns of a run's losses.csv: `step`, `total` and each named loss."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(header)}
