"""The pool of processes: GPUs are shared out, what is killed runs again, and nothing outlives its parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smra_core.grid import command_run
from smra_core.grid.command_run import BUSY, run_command
from smra_core.grid.local_pool import LocalPool

ROOT = Path(__file__).parents[3]
KILLED = 9
"""SIGKILL, which Windows knows as a number alone."""
LISTEN = "import sys, time; from smra_core.grid.child import stop_with_parent; stop_with_parent(); "


@pytest.fixture
def as_script(monkeypatch, tmp_path):
    """Run the command as the text of a Python script, in place of one of smra_core's."""
    real = subprocess.Popen

    def start(arguments, **more):
        return real([sys.executable, "-c", arguments[4], *arguments[5:]], **more)

    monkeypatch.setattr(command_run.subprocess, "Popen", start)
    monkeypatch.setattr(command_run, "WAIT_FOR_A_BUSY_RUN", 0.0)
    return tmp_path / "logs" / "task.log"


def test_the_result_is_the_last_line_that_a_command_prints(as_script):
    end = run_command(["print('a note'); print('{\"path\": \"x\"}')"], as_script)
    assert (end.code, end.result, end.tries) == (0, {"path": "x"}, 1)


def test_a_command_that_is_killed_runs_again(as_script):
    first = f"import os, pathlib; p = pathlib.Path({str(as_script)!r}).with_name('seen'); "
    code = first + "seen = p.exists(); p.touch(); seen or os.kill(os.getpid(), 9); print('{}')"
    end = run_command([code], as_script)
    assert (end.code, end.tries) == (0, 2)


@pytest.mark.parametrize("code, tries", [(1, 1), (2, 1), (BUSY, 3), (-KILLED, 3)])
def test_bad_input_is_not_tried_again(as_script, code, tries):
    text = f"import os, sys; print('why', file=sys.stderr, flush=True); {_end(code)}"
    end = run_command([text], as_script, tries=3)
    assert (end.tries, end.said.splitlines()[-1]) == (tries, "why")
    assert abs(end.code) == abs(code)  # a killed process has a positive code on Windows


def _end(code):
    return f"os.kill(os.getpid(), {-code})" if code < 0 else f"sys.exit({code})"


def test_each_command_has_gpus_of_its_own_and_gives_them_back(as_script):
    code = "import os, time; print('{\"path\": \"' + os.environ['CUDA_VISIBLE_DEVICES'] + '\"}')"
    with LocalPool(["0", "1", "2"]) as pool:
        pool.start("wide", [code], as_script, 2)
        assert pool.has_room(1) and not pool.has_room(2)
        pool.start("narrow", [code], as_script, 1)
        assert not pool.has_room(1)
        used = dict(pool.wait() for _ in range(2))
        assert pool.has_room(3)
    wide, narrow = (used[name].result["path"].split(",") for name in ("wide", "narrow"))
    assert len(wide) == 2 and sorted([*wide, *narrow]) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="needs 4 GPUs, and this computer has 3"):
        pool.has_room(4)


def test_a_command_is_interrupted_when_its_parent_is_killed(tmp_path):
    mark = tmp_path / "interrupted"
    waits = "print('on', flush=True); time.sleep(60)"
    code = f"{LISTEN}\ntry: {waits}\nexcept KeyboardInterrupt: open({str(mark)!r}, 'w')"
    parent = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
        "stdin=subprocess.PIPE, stdout=subprocess.PIPE); p.stdout.readline(); print('on', flush=True); "
        "p.wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, code], stdout=subprocess.PIPE, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    process.stdout.readline()
    process.kill()
    deadline = time.monotonic() + 30
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mark.exists()
