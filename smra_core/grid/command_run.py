"""Run one command in a process of its own, and again where it was killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

BAD_INPUT, BUSY, INTERRUPTED = 1, 75, 130
"""Exit codes of the command line (see cli.main). What was killed, or found its run in use, is run again."""
TRIES = 4
WAIT_FOR_A_BUSY_RUN = 3.0
"""Seconds before a run that another process still holds is tried again: a killed grid's last step ends."""
_TAIL = 3
"""Last lines of a log that are shown when a command fails."""


class CommandEnd(NamedTuple):
    """How a command ended."""

    code: int
    """Exit code of the last try; 0 is success."""
    result: dict
    """What the command printed with --json."""
    said: str
    """Last lines of its log."""
    tries: int


def run_command(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    on_start: Callable[[subprocess.Popen], None] | None = None,
    tries: int = TRIES,
    processes: int = 1,
) -> CommandEnd:
    """Run `python -m smra_core` with these arguments and --json until it ends well, at most `tries` times.

    Its messages are appended to `log`. It is stopped when this process ends. `on_start` is called with each
    process that is started. A training can run in several `processes`, each on a GPU of its own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    code, output, number = 0, b"", 0
    while number < tries:
        number += 1
        with open(log, "ab") as messages:
            process = subprocess.Popen(
                [sys.executable, "-m", "smra_core.grid.child", str(processes), *command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, env=_join_path(environment),
            )  # fmt: skip
            if on_start is not None:
                on_start(process)
            assert process.stdout is not None
            output = process.stdout.read()  # not communicate, which would close the standard input
            code = process.wait()
            assert process.stdin is not None
            process.stdin.close()  # which ends what is left of several processes
        if code in (0, BAD_INPUT, 2, INTERRUPTED):
            break
        if code == BUSY:
            time.sleep(WAIT_FOR_A_BUSY_RUN)
    return CommandEnd(code, _read_result(output) if code == 0 else {}, _read_tail(log), number)


def _join_path(environment: Mapping[str, str] | None) -> dict[str, str]:
    """Return the environment of a child that finds this package, wherever it was started."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(paths)}


def _read_result(output: bytes) -> dict:
    lines = output.decode("utf-8", errors="replace").strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def _read_tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return "\n".join([line for line in lines if line.strip()][-_TAIL:])
