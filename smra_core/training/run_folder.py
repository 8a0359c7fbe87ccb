"""State of a training run on disk, written so that no trained step is ever lost or half-written."""

import csv
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..storage.atomic_write import explain_write_errors, remove_drafts, write_atomically
from .state import TrainState

log = logging.getLogger("smrabooth")

STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"
LOSSES, ABOUT, FINISHED = "losses.csv", "run.json", "finished"
DAMAGED_LOSSES = "losses.damaged.csv"
"""Copy of a table of losses that could not be read to its end."""
LOCK, OWNER = "lock", "process"
"""The locked file, and the number of the process that holds the lock. Two files, because Windows lets nobody
read a locked file, and because some versions of filelock empty the locked file when a lock is refused.
"""


class RunInUse(ValueError):
    """Error for a run that another process trains; the same call can succeed later."""

    exit_code = 75
    """Exit code of the command line: a temporary failure (EX_TEMPFAIL of sysexits.h)."""


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
        """Step of the newest state if this process has read or written it, otherwise None."""
        self._unlogged: list[dict[str, str]] = []
        """Lines of losses.csv that are not written yet, because writing them failed: cells by column."""
        self._columns: list[str] = []
        """Columns of losses.csv; empty before this process has read it or written to it."""
        self._make_folder(text)

    def _make_folder(self, about: str) -> None:
        with explain_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        # Once only, because another process that trains here may delete unfinished files.
        if not (self.path / ABOUT).is_file():
            with write_atomically(self.path / ABOUT) as draft:
                draft.write_text(about, encoding="utf-8")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for the duration of a with block; RunInUse if another process trains here.

        The operating system drops the lock with the process, however that ends, so that a kill leaves no lock
        behind. Where the file system has no locks, a warning is logged and the run starts without one. With
        the lock, temporary files that a killed process left in the folder are deleted.
        """
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            owner = _read_number(self.path / OWNER)
            raise RunInUse(
                f"Process {owner} is training in {self.path}. Wait for it, or stop it; its steps are kept."
            ) from None
        except (OSError, NotImplementedError) as error:
            log.warning("%s cannot be locked (%s); start no second run of the same.", lock.lock_file, error)
        try:
            with explain_write_errors(self.path / OWNER):
                (self.path / OWNER).write_text(str(os.getpid()), "ascii")
            if lock.is_locked:
                self._remove_dead_drafts()
            self._set_damaged_losses_aside()
            yield
        finally:
            lock.release()

    def read_finished_steps(self) -> int:
        """Return the steps of the run whose LoRA file was last written here; 0 if there is none."""
        return _read_number(self.path / FINISHED) or 0

    def finish(self, steps: int) -> None:
        """Record that the LoRA file of this many steps is written."""
        with write_atomically(self.path / FINISHED) as draft:
            draft.write_text(str(steps), "ascii")

    def restore(self, state: TrainState) -> None:
        """Load the last saved state of this run into `state`; leave `state` alone if the run is new.

        Falls back to the state before, with a warning, if the last one cannot be read. Raises ValueError if
        there are states and none can be read.
        """
        unreadable = []
        for name in (STATE, PREVIOUS):
            try:
                tensors = load_file(self.path / name)
            except FileNotFoundError:
                continue
            except SafetensorError as error:
                unreadable.append(f"{name} ({error})")
                continue
            state.load(tensors)
            if unreadable:
                log.warning("%s cannot be read; going back to step %d.", unreadable[0], state.step)
            self._saved = state.step if name == STATE else None
            break
        else:
            if unreadable:
                raise ValueError(
                    f"The saved states in {self.path} cannot be read: {', '.join(unreadable)}. Put them back "
                    "from a copy, or delete the folder to train from step 1."
                )
        # A run that was killed before its first state has logged steps that will be trained again.
        self._forget_losses_after(state.step)

    def save(self, state: TrainState) -> None:
        """Write the state, unless this step is written already, and keep the previous state as well.

        Only a state that this process has read or written becomes the previous one: a broken newest state
        must not replace the good one before it. Raises OSError when it cannot be written; the states before
        are kept.
        """
        with suppress(OSError):  # the state counts more than the table, and tells the same error
            self._write_losses()
        if state.step == self._saved:
            return
        current = self.path / STATE
        if self._saved is not None and current.is_file():
            with write_atomically(self.path / PREVIOUS) as draft:
                _link_or_copy(current, draft)
        with write_atomically(current) as draft:
            save_file(state.copy_tensors(), draft)
        self._saved = state.step

    def log_losses(self, step: int, losses: Mapping[str, float | None]) -> None:
        """Append a line to losses.csv, whose columns are `step` and the losses' names; None is left empty.

        A table that an earlier version or other options began with fewer columns gets the new ones. Raises
        OSError when it cannot be written. The line is kept then, and written with the next line or state.
        """
        cells = {name: "" if value is None else f"{value:.6g}" for name, value in losses.items()}
        self._unlogged.append({"step": str(step), **cells})
        self._write_losses()

    def _write_losses(self) -> None:
        """Append the lines that are not written yet, all of them or none."""
        if not self._unlogged:
            return
        path = self.path / LOSSES
        with explain_write_errors(path):
            lines = self._prepare_lines()
            with open(path, "ab") as file:
                size = file.tell()
                try:
                    file.write("".join(",".join(line) + "\r\n" for line in lines).encode())  # as csv does
                    file.flush()
                except OSError:
                    with suppress(OSError):
                        file.truncate(size)
                    raise
        self._unlogged.clear()

    def _prepare_lines(self) -> list[list[str]]:
        """Return the lines to append, with the header for a new table; give a table with fewer columns the
        missing ones first.
        """
        path = self.path / LOSSES
        is_new = not path.is_file() or not path.stat().st_size
        if is_new:
            self._columns = []
        elif not self._columns:
            self._columns = _read_table(path).header
        names = dict.fromkeys([*self._columns, *(name for line in self._unlogged for name in line)])
        if not is_new and len(names) > len(self._columns):
            table = _read_table(path)
            empty = [""] * (len(names) - len(table.header))
            self._write_table(_Table(list(names), table.rows, False), [[*row, *empty] for row in table.rows])
        self._columns = list(names)
        lines = [[line.get(name, "") for name in names] for line in self._unlogged]
        return [list(names), *lines] if is_new else lines

    def _forget_losses_after(self, step: int) -> None:
        """Remove the lines of later steps, because these will be trained, and logged, again."""
        path = self.path / LOSSES
        if not path.is_file():
            return
        table = _read_table(path)
        self._write_table(table, [row for row in table.rows if int(row[0]) <= step])

    def _set_damaged_losses_aside(self) -> None:
        """Set a damaged losses.csv aside, with a warning, and keep the lines that can be read."""
        path = self.path / LOSSES
        if not path.is_file():
            return
        table = _read_table(path)
        if not table.is_damaged:
            return
        aside = self.path / DAMAGED_LOSSES
        with write_atomically(aside) as draft:
            shutil.copyfile(path, draft)
        log.warning(
            "%s is damaged. It is kept as %s; the %d lines that can be read stay.",
            path,
            aside.name,
            len(table.rows),
        )
        self._write_table(table, table.rows)

    def _write_table(self, table: "_Table", rows: Sequence[Sequence[str]]) -> None:
        path = self.path / LOSSES
        if not table.header:
            path.unlink()
            return
        with write_atomically(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([table.header, *rows])

    def _remove_dead_drafts(self) -> None:
        """Delete what a process that was killed while it saved has left: up to the size of a state."""
        drafts = remove_drafts(self.path)
        if drafts:
            log.info("Deleted %d unfinished files of a killed run from %s.", len(drafts), self.path)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text("ascii"))
    except (FileNotFoundError, ValueError):
        return None


class _Table(NamedTuple):
    """Lines of a losses.csv that can be read."""

    header: list[str]
    """Names of the columns; empty if the first line is damaged."""
    rows: list[list[str]]
    is_damaged: bool
    """Whether more is wrong with the file than a last line that a kill has cut off."""


def _read_table(path: Path) -> _Table:
    *lines, _cut_off = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    fields = [line.removesuffix("\r").split(",") for line in lines]
    if not fields:
        return _Table([], [], False)
    header, *rows = fields
    if header[0] != "step":
        return _Table([], [], True)
    good_rows = [row for row in rows if len(row) == len(header) and _is_row(row)]
    return _Table(header, good_rows, len(good_rows) < len(rows))


def _is_row(row: Sequence[str]) -> bool:
    """Whether these are a step and losses that are finite or left empty."""
    try:
        return row[0].isdigit() and all(math.isfinite(float(value)) for value in row if value)
    except ValueError:
        return False


def read_losses(path: str | Path) -> dict[str, list[float]]:
    """Return the columns of a run's losses.csv: `step`, `total`, each named loss, and what is logged in some
    steps only, such as the losses by band of noise; NaN stands for a step without it.

    Lines that cannot be read are left out. A file that is not there, or has no such columns, gives empty
    columns `step` and `total`.
    """
    table = _read_table(Path(path)) if Path(path).is_file() else _Table([], [], False)
    if not table.header:
        return {"step": [], "total": []}
    return {name: [float(row[i] or "nan") for row in table.rows] for i, name in enumerate(table.header)}
