"""A grid's run: trainings before their cells, only what is missing, and what failed by name."""

import json

import pytest

from smra_core.grid.command_run import CommandEnd
from smra_core.grid.grid_file import read_grid_file
from smra_core.grid.plan import make_plan
from smra_core.grid.run import GridRun

GRID = """
subjects: {cat: cat, dog: dog}
motions: {walk: walk.mp4, none: ~}
prompts: ["{subject} {motion}"]
seeds: [1, 2]
gpus: {training: 2, cell: 1}
"""
TRAININGS, CELLS, GPUS = 3, 8, 2


class Workers:
    """Runs nothing: writes what a command would have written, in the order of the calls."""

    def __init__(self, folder, fails=(), stops_after=None):
        self.folder, self.fails, self.stops_after = folder, fails, stops_after
        self.free, self.queue, self.names, self.most = GPUS, [], [], 0

    def has_room(self, gpus):
        return self.free >= gpus

    def start(self, task, command, log, gpus, processes):
        assert command[1] == "--json"
        assert processes == (1 if command[0] == "sample" else gpus)
        self.free -= gpus
        self.queue.append((task, command, gpus))
        self.names.append(task.name)
        self.most = max(self.most, len(self.queue))

    def wait(self):
        if self.stops_after is not None and len(self.names) > self.stops_after:
            raise KeyboardInterrupt
        task, command, gpus = self.queue.pop(0)
        self.free += gpus
        if task.name in self.fails:
            return task, CommandEnd(1, {}, "no memory", 1)
        if command[0] == "sample":
            path = next(option for option in command if option.startswith("--video=")).partition("=")[2]
        else:
            path = self.folder / f"{task.name}.safetensors"
        self.folder.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
        self.folder.joinpath(path).write_text(task.name)
        return task, CommandEnd(0, {"path": str(path)}, "", 1)


@pytest.fixture
def run(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    (tmp_path / "walk.mp4").write_bytes(b"a clip")
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")

    def run_grid(**options):
        plan, workers = make_plan(read_grid_file(tmp_path / "grid.yaml")), Workers(tmp_path, **options)
        return GridRun(plan, workers).run(), workers, plan

    return run_grid


def test_a_cell_starts_after_its_loras_and_gpus_are_shared_out(run):
    end, workers, plan = run()
    assert (end.made, end.found, end.failed) == (TRAININGS + CELLS, 0, {})
    assert workers.names[:TRAININGS] == ["subject cat", "subject dog", "motion walk"]
    assert workers.most == GPUS and workers.free == GPUS
    about = json.loads(plan.find_video(plan.cells[0]).with_suffix(".json").read_text("utf-8"))
    assert about["prompt"] == "cat walk" and about["seed"] == 1


def test_a_second_run_makes_nothing(run):
    run()
    end, workers, _ = run()
    assert (end.made, end.found, workers.names) == (0, TRAININGS + CELLS, [])


@pytest.mark.parametrize("stops_after", [1, 5])
def test_after_an_interrupt_only_what_is_missing_runs(run, stops_after):
    with pytest.raises(KeyboardInterrupt):
        run(stops_after=stops_after)
    end, workers, _ = run()
    assert end.made + end.found == TRAININGS + CELLS and end.found >= stops_after - GPUS
    assert len(workers.names) == end.made < TRAININGS + CELLS + 1


def test_a_failed_training_costs_its_own_cells_alone(run):
    end, _, _ = run(fails=["subject cat"])
    assert end.made == TRAININGS - 1 + CELLS // 2
    assert end.failed["subject cat"] == "no memory" and len(end.failed) == 1 + CELLS // 2
    assert all("cat" in name for name in end.failed)


def test_a_lora_that_was_deleted_is_trained_again(run, tmp_path):
    run()
    (tmp_path / "motion walk.safetensors").unlink()
    end, workers, _ = run()
    assert workers.names == ["motion walk"] and end.made == 1
