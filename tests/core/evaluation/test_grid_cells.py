"""Cells of a grid in a graph: lists, prompts, and the folder that holds the videos."""

import json

import pytest
import torch

from smra_core.evaluation import grid_report
from smra_core.evaluation.cell_metrics import CellMetrics
from smra_core.evaluation.grid_cells import (
    NO_LORA,
    TRAINED_HERE,
    CellValues,
    GridAxes,
    GridFolder,
    GridLora,
    fill_prompt,
    parse_loras,
    parse_numbers,
    write_grid_report,
)

KNOWN = ["dog.safetensors", "cat_100.safetensors", "cat_50.safetensors", "a/walk.safetensors"]
LABELS = {"subject": "dog", "seed": "1"}


def test_a_line_is_a_file_with_its_words():
    text = "\n dog.safetensors | sks dog \n\nNone\na/walk.safetensors"
    assert parse_loras(text, KNOWN) == [
        ("dog.safetensors", "sks dog"), (NO_LORA, ""), ("a/walk.safetensors", "")
    ]  # fmt: skip


def test_a_pattern_is_all_files_that_fit_in_the_order_of_their_steps():
    names = [lora.name for lora in parse_loras("cat_*.safetensors | sks cat", KNOWN)]
    assert names == ["cat_50.safetensors", "cat_100.safetensors"]


@pytest.mark.parametrize("text", ["bird.safetensors", "bird_*", "../dog.safetensors", "/etc/passwd"])
def test_a_file_that_is_not_listed_is_refused(text):
    with pytest.raises(ValueError, match="not in models/loras"):
        parse_loras(text, KNOWN)


def test_numbers_have_commas_or_lines_between_them():
    assert parse_numbers("0.5, 1\n1", "x") == [0.5, 1.0] and parse_numbers("", "x") == []
    assert parse_numbers("3,4", "seeds", whole=True) == [3, 4]
    for text, whole in (("0.5;1", False), ("1.5", True), ("nan", False)):
        with pytest.raises(ValueError, match="x must be"):
            parse_numbers(text, "x", whole)


def test_all_combinations_come_seed_by_seed():
    axes = GridAxes([GridLora("a"), GridLora("b")], [GridLora("c")], [0.5, 1.0], [1.0], [None], [7, 8])
    cells = list(axes.list_cells())
    assert len(cells) == len(set(cells)) == 8 and [cell.seed for cell in cells] == [7] * 4 + [8] * 4


DOG, WALK = GridLora("dog.safetensors", "sks dog"), GridLora("walk.safetensors")


def cell(subject=DOG):
    return CellValues(subject, WALK, 1.0, 0.5, 0.7, 3)


def test_words_stand_in_the_prompt_and_a_file_without_them_is_called_by_its_name():
    assert fill_prompt("a {subject} is {motion}, {other}", cell()) == "a sks dog is walk, {other}"
    assert cell().make_labels() == {
        "subject": "dog", "motion": "walk", "subject strength": "1", "motion strength": "0.5",
        "T_point": "0.7", "seed": "3",
    }  # fmt: skip


@pytest.mark.parametrize("name", [NO_LORA, TRAINED_HERE])
def test_what_has_no_name_needs_words(name):
    with pytest.raises(ValueError, match="no words"):
        fill_prompt("a {subject}", cell(GridLora(name)))
    assert fill_prompt("a dog", cell(GridLora(name))) == "a dog"


@pytest.fixture
def folder(tmp_path):
    return GridFolder(tmp_path / "grid")


def save(folder, key, **labels):
    folder.save_cell(key, torch.rand(2, 3, 17, 16), 8, LABELS | labels, "a prompt")


def test_a_cell_is_whole_when_its_video_and_its_labels_are_there(folder):
    save(folder, "one")
    save(folder, "two", subject="cat")
    folder.find_video("two").with_suffix(".json").unlink()
    assert [folder.is_there(key) for key in ("one", "two", "three")] == [True, False, False]
    assert folder.list_keys() == ["one"]
    about = json.loads(folder.find_video("one").with_suffix(".json").read_text("utf-8"))
    assert about == {"labels": LABELS, "note": "a prompt", "fps": 8}


def test_the_report_shows_the_cells_asked_for_and_counts_the_missing(folder):
    for key in ("one", "two"):
        save(folder, key, subject=key)
    report, said = write_grid_report(folder, ["one", "gone"], "A grid")
    assert "1 of 2 cells" in said and all(file.is_file() for file in report)
    text = report.page.read_text("utf-8")
    assert '"one"' in text and '"two"' not in text


def test_the_report_has_the_metrics_of_each_cell_and_names_what_was_left_out(folder, monkeypatch):
    for key in ("one", "two"):
        save(folder, key, subject=key)
    pages = []
    monkeypatch.setattr(grid_report, "write_grid_page", lambda *page: pages.extend(page))

    def measure(video, prompt):
        assert prompt == "a prompt"
        return CellMetrics({"CLIP-T": float(len(video.stem))}, {"DINO-I": "needs DINO"})

    write_grid_report(folder, ["one", "two"], "A grid", measure)
    cells, notes = pages[2], pages[4]
    assert [cell.metrics["CLIP-T"] for cell in cells] == [3, 3]
    assert "Left out: DINO-I (needs DINO)." in notes


def test_of_too_many_cells_there_is_the_page_alone_and_the_sentence_says_so(folder, monkeypatch):
    monkeypatch.setattr(grid_report, "MOST_ON_A_WALL", 1)
    for key in ("one", "two"):
        save(folder, key, subject=key)
    report, said = write_grid_report(folder, ["one", "two"], "A grid")
    assert report.page.is_file() and report[1:] == (None, None) and "too many" in said


def test_a_report_without_a_cell_is_refused(folder):
    with pytest.raises(ValueError, match="holds no cell"):
        write_grid_report(folder, ["one"], "A grid")
