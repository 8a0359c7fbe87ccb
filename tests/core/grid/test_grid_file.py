"""Grid files: what they say, and what of them is refused before anything runs."""

import pytest

from smra_core.commands.grid import check_commands, choose_networks
from smra_core.grid.grid_file import read_grid_file
from smra_core.grid.plan import make_options, make_plan

GRID = """
subjects:
  cat: {data: cat, word: sks cat, options: {steps: 3}}
  none: {data: ~, word: a dog}
motions:
  walk: {data: walk.safetensors}
settings:
  weak: {subject_strength: [0.1, 0.2]}
  strong: {}
prompts: ["{subject} is {motion}", "{subject}"]
seeds: [4, 5]
subject_options: {steps: 7, rank: 8}
sampling: {steps: 2}
"""
CELLS = 2 * 1 * 2 * 2 * 2
"""Subjects, motions, settings, prompts, seeds."""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "00.png").write_bytes(b"a picture")
    (tmp_path / "walk.safetensors").write_bytes(b"a LoRA")

    def write_file(text=GRID):
        (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "grid.yaml"

    return write_file


def plan_of(path):
    return make_plan(read_grid_file(path))


def test_every_combination_is_one_cell_and_whole_seeds_come_first(write):
    plan = plan_of(write())
    assert len(plan.cells) == CELLS and [cell.seed for cell in plan.cells] == [4] * 8 + [5] * 8
    assert plan.cells[0].prompt == "sks cat is walk"
    assert len({(c.subject.name, c.setting, c.prompt, c.seed) for c in plan.cells}) == CELLS


def test_only_data_is_trained_and_its_own_options_replace_those_of_all(write):
    (training,) = plan_of(write()).trainings
    assert training.name == "subject cat"
    assert {"--steps=3", "--rank=8"} <= set(training.command) and "--steps=7" not in training.command


def test_options_are_written_as_the_command_line_takes_them():
    values = {"own-sizes": True, "weighted-velocity": False, "subject-strength": [0.1, 2], "steps": 3}
    assert make_options(values) == [
        "--own-sizes", "--no-weighted-velocity", "--subject-strength=0.1,2", "--steps=3"
    ]  # fmt: skip


def test_a_cell_waits_for_its_loras(write):
    plan = plan_of(write())
    ready = {cell.subject.name for cell in plan.cells if plan.is_ready(cell)}
    assert ready == {"none"}


def test_a_changed_picture_is_another_training(write, tmp_path):
    before = plan_of(write()).trainings[0].key
    (tmp_path / "cat" / "01.png").write_bytes(b"another picture")
    assert plan_of(write()).trainings[0].key != before


@pytest.mark.parametrize(
    "old, new",
    [("steps: 2", "steps: 3"), ("{subject}\"", "{subject} runs\""), ("seeds: [4", "seeds: [6")],
)  # fmt: skip
def test_what_a_video_depends_on_is_in_its_name(write, old, new):
    names = [
        {p.find_video(c).name for c in p.cells if p.is_ready(c)}
        for p in (plan_of(write()), plan_of(write(GRID.replace(old, new))))
    ]
    assert len(names[0]) == CELLS // 2 and names[0] != names[1]


def test_another_lora_under_the_same_name_is_another_video(write, tmp_path):
    def name():
        plan = plan_of(write())
        return plan.find_video(next(cell for cell in plan.cells if plan.is_ready(cell))).name

    before = name()
    (tmp_path / "walk.safetensors").write_bytes(b"another LoRA")
    assert name() != before


@pytest.mark.parametrize(
    "text, said",
    [
        ("subjects: {a: cat}", "no motions"),
        (GRID + "sedes: [1]", "unknown keys: sedes"),
        (GRID.replace("data: cat,", "data: dog,"), "dog is not there"),
        (GRID.replace("[4, 5]", "[x]"), "seeds must be whole numbers"),
        (GRID.replace("sampling: {", "sampling: {seed: 3, "), "sets seed"),
        (GRID.replace('"{subject}"', '"{shape}"'), "cannot be filled in"),
        (GRID + "gpus: {cell: 0}", "gpus must be"),
        ("a: [", "not YAML"),
        ("- a", "must hold keys"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(write, text, said):
    with pytest.raises(ValueError, match=said):
        plan_of(write(text))


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("rank: 8", "rank: many", "train-subject.*rank"),
        ("sampling: {steps: 2}", "sampling: {step: 2}", "sample.*step"),
        ("strong: {}", "strong: {t_point: later}", "no noise level"),
        ("sampling:", "gpus: {training: 3}\nsampling:", "accumulate is 2, and 3 processes"),
    ],
)
def test_options_are_checked_before_anything_runs(write, old, new, said):
    with pytest.raises(ValueError, match=said):
        check_commands(plan_of(write(GRID.replace(old, new))))


def test_the_networks_of_the_metrics_have_evaluates_options(write):
    given = choose_networks(plan_of(write(GRID + "metrics: {clip: vit_b32, co_tracker: points.pth}")))
    assert given.key == "--clip=vit_b32 --co-tracker=points.pth"
    assert "dino" in choose_networks(plan_of(write())).key  # the miniature's own
    assert choose_networks(plan_of(write(GRID + "model: wan.safetensors"))) is None
    with pytest.raises(ValueError, match="evaluate.*clipp"):
        choose_networks(plan_of(write(GRID + "metrics: {clipp: vit_b32}")))
