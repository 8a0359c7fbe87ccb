"""`python -m smra_core grid`: what it refuses, what it runs in, and how it ends."""

import json
from pathlib import Path

import pytest

from smra_core.cli import main
from smra_core.commands import grid
from smra_core.grid.command_run import CommandEnd

GRID = """
subjects: {cat: cat}
motions: {none: ~}
prompts: ["{subject}"]
out: made
"""
STEPS = "subject_options: {steps: many}\n"


class Pool:
    """Replaces the pool of processes by one in which each command writes its file, or fails."""

    def __init__(self, places, fails):
        self.places, self.fails, self.tasks = places, fails, []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def has_room(self, gpus):
        return True

    def start(self, task, command, log, gpus, processes=1):
        self.tasks.append((task, command, log))

    def wait(self):
        task, command, log = self.tasks.pop(0)
        if self.fails:
            return task, CommandEnd(1, {}, "no memory", 1)
        video = [option.partition("=")[2] for option in command if option.startswith("--video=")]
        path = Path(video[0]) if video else log.with_suffix(".safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return task, CommandEnd(0, {"path": str(path)}, "", 1)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Function that runs the command; it returns the exit code, what was printed and the pools so far."""
    (tmp_path / "cat").mkdir()
    pools = []
    monkeypatch.setattr(grid, "list_gpus", lambda: [])
    monkeypatch.setattr(grid, "write_results", lambda plan, networks: None)

    def run_grid(*options, text=GRID, fails=False):
        def make_pool(*places):
            pools.append(Pool(places, fails))
            return pools[-1]

        monkeypatch.setattr(grid, "LocalPool", make_pool)
        (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
        code = main(["grid", str(tmp_path / "grid.yaml"), *options])
        return code, capsys.readouterr(), pools

    return run_grid


def test_a_dry_run_tells_what_is_missing_and_runs_nothing(run, tmp_path):
    code, shown, pools = run("--dry-run")
    assert code == 0 and not pools and not (tmp_path / "made").exists()
    assert shown.out == "0 of 1 trainings and 0 of 1 cells are there.\n"
    run()
    whole = {"trainings": 1, "trained": 1, "cells": 1, "sampled": 1}
    assert json.loads(run("--dry-run", "--json")[1].out) == whole
    next(tmp_path.glob("made/cells/*.mp4")).unlink()
    assert json.loads(run("--dry-run", "--json")[1].out) == whole | {"sampled": 0}


def test_a_grid_runs_as_many_commands_at_a_time_as_it_was_given(run):
    code, shown, (pool,) = run("--workers", "3")
    assert code == 0 and pool.places == ([], 3)
    assert shown.out == "2 made, 0 were there, 0 failed: no page\n"


def test_a_grid_with_failed_tasks_prints_its_end_and_fails(run, tmp_path):
    code, shown, _ = run("--json", fails=True)
    assert code == 1 and json.loads(shown.out)["failed"]["subject cat"] == "no memory"
    assert "2 of the grid failed: subject cat" in shown.err and str(tmp_path / "made" / "logs") in shown.err


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [(["--workers", "0"], GRID, "--workers must be at least 1, got 0"), ([], GRID + STEPS, "steps")],
)
def test_what_cannot_run_is_refused_before_anything_does(run, options, text, said):
    code, shown, pools = run(*options, text=text)
    assert code == 1 and not pools and said in shown.err
