"""State of a training run on disk, written so that no trained step is ever lost or half-written."""

import csv
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..storage.atomic_write import write_atomically
from .state import TrainState

log = logging.getLogger("smrabooth")

STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"
LOSSES, ABOUT, FINISHED = "losses.csv", "run.json", "finished"
LOCK, OWNER = "lock", "process"
"""The locked file, and the number of the process that holds the lock. Two files, because Windows lets nobody
read a locked file, and because some versions of filelock empty the locked file when a lock is refused.
"""


class RunFolder:
    """Folder of one run, named after everything that the run depends on.

    With the same data, settings and base model a run comes back to its folder and is resumed there; a change
    of any of them makes another run.
    """

    def __init__(self, root: Path, name: str, parts: Mapping[str, Any]):
        """Create the folder below `root`; `parts` is made of JSON values: settings and content hashes."""
        text = json.dumps(parts, sort_keys=True, indent=1, allow_nan=False)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.path = Path(root) / f"{name}-{self.fingerprint[:12]}"
        self._saved: int | None = None
        self.path.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.path / ABOUT) as draft:
            draft.write_text(text, encoding="utf-8")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for the duration of a with block; ValueError if another process trains here.

        The operating system drops the lock with the process, however that ends, so that a kill leaves no lock
        behind. Where the file system has no locks, a warning is logged and the run starts without one.
        """
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            owner = _read_number(self.path / OWNER)
            raise ValueError(
                f"Process {owner} is training in {self.path}. Wait for it, or stop it; its steps are kept."
            ) from None
        except (OSError, NotImplementedError) as error:
            log.warning("%s cannot be locked (%s); start no second run of the same.", lock.lock_file, error)
        try:
            (self.path / OWNER).write_text(str(os.getpid()))
            yield
        finally:
            lock.release()

    def read_finished_steps(self) -> int:
        """Return the steps of the run whose LoRA file was last written here; 0 if there is none."""
        return _read_number(self.path / FINISHED) or 0

    def finish(self, steps: int) -> None:
        """Record that the LoRA file of this many steps is written."""
        with write_atomically(self.path / FINISHED) as draft:
            draft.write_text(str(steps))

    def restore(self, state: TrainState) -> None:
        """Load the last saved state of this run into `state`; leave `state` alone if the run is new.

        Falls back to the state before, with a warning, if the last one cannot be read.
        """
        for name in (STATE, PREVIOUS):
            try:
                tensors = load_file(self.path / name)
            except FileNotFoundError:
                continue
            except SafetensorError as error:
                log.warning("%s cannot be read (%s); going back to the state before it.", name, error)
                continue
            state.load(tensors)
            self._saved = state.step if name == STATE else None
            self._forget_losses_after(state.step)
            return

    def save(self, state: TrainState) -> None:
        """Write the state, unless this step is written already, and keep the previous state as well."""
        if state.step == self._saved:
            return
        current = self.path / STATE
        if current.is_file():
            with write_atomically(self.path / PREVIOUS) as draft:
                _link_or_copy(current, draft)
        with write_atomically(current) as draft:
            save_file(state.copy_tensors(), draft)
        self._saved = state.step

    def log_losses(self, step: int, losses: Mapping[str, float]) -> None:
        """Append a line to losses.csv, whose columns are `step` and the losses' names."""
        path = self.path / LOSSES
        new = not path.is_file()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *losses])
            writer.writerow([step, *(f"{value:.6g}" for value in losses.values())])

    def _forget_losses_after(self, step: int) -> None:
        """Remove the lines of later steps, because these will be trained, and logged, again."""
        path = self.path / LOSSES
        if not path.is_file():
            return
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        # A kill can leave the last line truncated.
        kept_rows = [
            row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= step
        ]
        with write_atomically(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *kept_rows])


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def read_losses(path: str | Path) -> dict[str, list[float]]:
    """Return the columns of a run's losses.csv: `step`, `total` and each named loss."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(header)}
