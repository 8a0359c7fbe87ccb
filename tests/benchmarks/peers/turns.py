"""A trainer in a process of its own, which trains one step whenever it is its turn."""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..meters import IN_PLACE

ROOT = Path(__file__).parents[3]
_MARK = "TURN "
"""Start of a worker's lines that are for the driver; trainers print what they like."""


class Ended(BaseException):
    """Raised inside of a trainer to end it; none catches it, as it is no Exception."""


def _count_attention(query, key, value, *args, **kwargs):
    return sdpa_flop_count(query, key, value)


def _count_attention_backward(gradient, query, key, value, *args, **kwargs):
    return sdpa_backward_flop_count(gradient, query, key, value)


ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_backward,
}
"""Attention kernels that torch's FLOP counter does not know."""


class Turns:
    """The worker's side: what a trainer calls after each step."""

    def __init__(self):
        self._counter: FlopCounterMode | None = None
        self._idle, self._started, self._output = 0, 0.0, sys.stdout
        sys.stdout = sys.stderr  # trainers print there

    def begin(self, **about: Any) -> None:
        """Report that all is loaded, and wait for the first turn, in which FLOPs are counted."""
        self._idle = _release_memory()
        self._report(about)
        self._counter = FlopCounterMode(display=False, custom_mapping={**IN_PLACE, **ON_CPU})
        self._counter.__enter__()

    def end_step(self) -> None:
        """Report what the step cost, and wait for the next turn; Ended when there is none."""
        cost = {"seconds": time.process_time() - self._started, "bytes": _read_peak() - self._idle}
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            cost["flops"] = self._counter.get_total_flops()
            self._counter = None
        self._report(cost)

    def _report(self, values: dict[str, Any]) -> None:
        print(_MARK + json.dumps(values), file=self._output, flush=True)
        if sys.stdin.readline().strip() != "go":
            raise Ended
        _forget_peak()
        self._started = time.process_time()


def _release_memory() -> int:
    """Give freed memory back to the system; return the bytes that are resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _read_peak() -> int:
    """Return the most bytes that were resident since the peak was forgotten."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


class Trainer:
    """The driver's side of a trainer in a process of its own."""

    def __init__(self, name: str, python: str, arguments: list[str]):
        self.name, self.about, self.steps = name, {}, []
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [python, "-m", "tests.benchmarks.peers.worker", name, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )  # fmt: skip

    def load(self) -> bool:
        """Wait until everything is loaded; False where the trainer cannot run here."""
        self.about = self._read() or {}
        return bool(self.about)

    def take_turn(self) -> bool:
        """Let it train one step; False when it failed."""
        print("go", file=self._process.stdin, flush=True)
        step = self._read()
        if step is not None:
            self.steps.append(step)
        return step is not None

    def explain(self) -> str:
        """Return the last line that a failed trainer wrote."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else "it ended without a word"

    def stop(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any] | None:
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
        return None
