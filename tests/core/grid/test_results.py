"""What a grid leaves for people, made of the cells that are there."""

import json

import pytest
import torch

from smra_core.data.video import read_video_size, write_video
from smra_core.grid import results
from smra_core.grid.grid_file import read_grid_file
from smra_core.grid.plan import make_plan
from smra_core.grid.results import write_results

GRID = """
title: Four words
subjects: {none: {data: ~, word: a dog}, other: {data: ~, word: a cat}}
motions: {still: ~, walk: ~}
prompts: ["{subject} {motion}"]
"""
FRAMES, SIDE, FPS = 3, 16, 5


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    return make_plan(read_grid_file(tmp_path / "grid.yaml"))


def sample(plan, count):
    for number, cell in enumerate(plan.cells[:count]):
        video = plan.find_video(cell)
        write_video(video, torch.full((FRAMES, 3, SIDE, SIDE), number / 4), FPS)
        video.with_suffix(".json").write_text(json.dumps({"fps": FPS}), encoding="utf-8")


def test_the_page_the_wall_and_the_sheet_show_the_cells_that_are_there(plan):
    sample(plan, 3)
    page, wall, sheet = write_results(plan, None)
    text = page.read_text("utf-8")
    assert "3 of 4 cells" in text and "Four words" in text
    assert [plan.find_video(cell).stem in text for cell in plan.cells] == [True, True, True, False]
    assert sheet.is_file() and min(read_video_size(wall)) > 2 * SIDE


def test_a_grid_without_a_cell_leaves_nothing(plan):
    assert write_results(plan, None) is None and not (plan.file.out / "report.html").exists()


def test_a_large_grid_has_a_page_alone(plan, monkeypatch):
    sample(plan, 3)
    monkeypatch.setattr(results, "MOST_ON_A_WALL", 2)
    page, wall, sheet = write_results(plan, None)
    assert page.is_file() and wall is None and sheet is None
