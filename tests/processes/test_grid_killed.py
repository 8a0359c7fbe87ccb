"""A whole grid by its command: a LoRA is trained, the grid is killed in the middle, and finished."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smra_core.miniature.held_out_files import write_motion
from smra_core.training.run_folder import read_losses

ROOT = Path(__file__).parents[2]
STEPS, KILLED_AT, TIME = 12, 3, 900
GRID = f"""
title: Killed
out: made
subjects: {{none: {{data: ~, word: a circle}}}}
motions: {{zigzag: {{data: zigzag, word: vvt moving}}}}
motion_options: {{width: 64, height: 64, frames: 5, rank: 2, steps: {STEPS}, mora_weight: 0, decode: exact}}
prompts: ["{{subject}} {{motion}}"]
sampling: {{steps: 1, guidance: 1, width: 64, height: 64, frames: 5}}
device: cpu
"""


@pytest.fixture
def file(tmp_path):
    write_motion(tmp_path / "zigzag")
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    return tmp_path / "grid.yaml"


def start(file):
    return subprocess.Popen(
        [sys.executable, "-m", "smra_core", "grid", str(file), "--json"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def count_steps(folder):
    return sum(len(read_losses(table)["step"]) for table in folder.glob("runs/*/losses.csv"))


def test_a_grid_that_is_killed_in_its_training_is_finished_by_the_same_command(file):
    made = file.parent / "made"
    grid = start(file)
    deadline = time.monotonic() + TIME
    while count_steps(made) < KILLED_AT and time.monotonic() < deadline:
        time.sleep(0.02)
    grid.kill()
    grid.communicate(timeout=TIME)
    before = count_steps(made)
    assert KILLED_AT <= before <= STEPS and not list(made.glob("cells/*.mp4"))

    printed, said = start(file).communicate(timeout=TIME)
    end = json.loads(printed)
    assert end["failed"] == {}, said.decode()
    assert end["made"] + end["found"] == 2  # the training and the cell
    (table,) = made.glob("runs/*/losses.csv")
    assert read_losses(table)["step"] == list(range(1, STEPS + 1))  # no step was lost or made twice
    (video,) = made.glob("cells/*.mp4")
    page = Path(end["page"]).read_text("utf-8")
    assert video.stem in page and "Motion Fidelity (flow)" in page
    assert Path(end["wall"]).is_file() and Path(end["sheet"]).is_file()
