"""What a grid leaves for people, made of the cells that are there."""

import json
import math

import pytest
import torch

from smra_core.data.video import read_video_size, write_video
from smra_core.evaluation import grid_report
from smra_core.evaluation.cell_metrics import Networks
from smra_core.evaluation.evaluate import EvaluationModels
from smra_core.evaluation.grid_page import list_rows
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
    monkeypatch.setattr(grid_report, "MOST_ON_A_WALL", 2)
    page, wall, sheet = write_results(plan, None)
    assert page.is_file() and wall is None and sheet is None


class GrayLevel:
    """Encoder whose embedding is the direction that a picture's gray level names; the text is level 0."""

    name = "gray levels"

    def embed_pictures(self, pictures):
        angle = pictures.mean((1, 2, 3))
        return torch.stack([angle.cos(), angle.sin()], 1)

    def embed_text(self, text):
        return torch.tensor([1.0, 0.0])


def test_every_cell_is_measured_once_and_the_table_has_intervals_over_seeds(tmp_path, monkeypatch):
    (tmp_path / "grid.yaml").write_text(GRID + "seeds: [1, 2]", encoding="utf-8")
    plan, loads = make_plan(read_grid_file(tmp_path / "grid.yaml")), []
    levels = [0.0, 0.2, 0.4, 0.6, 0.1, 0.3, 0.5, 0.7]
    for cell, level in zip(plan.cells, levels, strict=True):
        video = plan.find_video(cell)
        write_video(video, torch.full((FRAMES, 3, SIDE, SIDE), level), FPS)
        video.with_suffix(".json").write_text(json.dumps({"fps": FPS}), encoding="utf-8")
    rows = []
    monkeypatch.setattr(
        grid_report,
        "write_grid_page",
        lambda path, title, cells, fixed, notes, texts: rows.extend([cells, notes]),
    )

    def load():
        loads.append(1)
        return EvaluationModels(clip=GrayLevel())

    networks = Networks("gray", load)
    for _ in range(2):
        rows.clear()
        write_results(plan, networks)
    cells, notes = rows
    assert len(loads) == 1  # the second time all numbers were there
    for cell, level in zip(cells, levels, strict=True):
        assert cell.metrics["CLIP-T"] == pytest.approx(math.cos(level), abs=0.01)
    assert any("DINO-I" in note and "needs DINO" in note for note in notes)
    row = next(iter(list_rows(cells, ["subject", "motion"])))
    assert row["count"] == 2 and row["metrics"]["CLIP-T"].low < math.cos(0.05) < row["metrics"]["CLIP-T"].high
    write_results(plan, Networks("another", load))
    assert len(loads) == 2
