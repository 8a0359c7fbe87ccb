"""A training in two processes: bit for bit that of one, and resumable when either of them ends."""

import importlib.util
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from smra_core.training.ranks import ALONE, Ranks, check_ranks, join_ranks
from smra_core.training.run_folder import LOSSES

SCRIPT = Path(__file__).with_name("two_ranks.py")
TIME = 120


def load_script():
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two_ranks():
    return load_script()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of what two processes made."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("This system has no fork, with which two processes start in a second.")
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, SCRIPT, folder], check=True, timeout=TIME)
    return folder


@pytest.fixture(scope="module")
def alone(two_ranks, tmp_path_factory):
    """Folder and state of the same training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, two_ranks.train(folder)


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_train_what_one_does_with_twice_the_batches(made, two_ranks, alone):
    folder, whole = alone
    for rank in range(two_ranks.PROCESSES):
        same(torch.load(made / f"whole {rank}.pt"), whole)
    logs = [next(folder.glob("toy-*")) / LOSSES for folder in (made / "whole", folder)]
    assert logs[0].read_text("utf-8") == logs[1].read_text("utf-8")


@pytest.mark.parametrize("end", ["canceled", "killed"])
def test_when_a_process_ends_the_last_step_is_saved_and_one_process_goes_on(made, two_ranks, alone, end):
    steps = []
    resumed = two_ranks.train(made / end, on_step=lambda info: steps.append(info.step))
    assert steps == [two_ranks.STOP + 1]
    same(resumed, alone[1])


def test_the_other_processes_say_that_one_has_ended(made):
    assert (made / "canceled 0").read_text("utf-8").startswith("KeyboardInterrupt")
    for name in ("canceled 1", "killed 0"):
        assert "Another process of this training has ended" in (made / name).read_text("utf-8")


def test_gradients_that_a_process_lacks_count_as_zero_and_the_first_one_goes_ahead(made):
    for rank in range(2):
        sums, passed = torch.load(made / f"sums {rank}.pt")
        assert sums == [[2, 5], [4, 5], None]
        assert passed == [[0, 1], 0, rank == 1]


def test_a_process_that_is_alone_takes_every_batch_and_starts_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks() as ranks:
        assert ranks == ALONE and not dist.is_initialized()
        assert [*ranks.take_batches(3)] == [0, 1, 2]
    assert [*Ranks(1, 2).take_batches(5)] == [1, 3]


def test_what_does_not_fit_the_processes_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="Give --accumulate 3, or start 2 processes"):
        Ranks(0, 3).check_batches(2)
    with pytest.raises(ValueError, match="cuda:1 is one GPU"):
        check_ranks(Ranks(0, 2), torch.device("cuda:1"))
    check_ranks(Ranks(0, 2), torch.device("cuda"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="only trainings compute on several GPUs"):
        check_ranks(ALONE, torch.device("cpu"))
