import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from smra_core.lora.adapter import LoraPair
from smra_core.training.run_folder import (
    DAMAGED_LOSSES,
    LOSSES,
    OWNER,
    PREVIOUS,
    STATE,
    RunFolder,
    read_losses,
)
from smra_core.training.state import TrainState

PARTS = {"data": "abc", "rank": 2}


def new_state(value=0.0):
    lora = {"blocks.0.self_attn.q": LoraPair(torch.full((2, 3), value), torch.full((3, 2), value))}
    return TrainState(lora, {"head": nn.Parameter(torch.full((2,), value))}, 0.1, 0.0)


def stepped(value=1.0, steps=1):
    state = new_state(value)
    for _ in range(steps):
        for parameter in state.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        state.optimizer.step()
        state.step += 1
    return state


def test_the_same_parts_come_back_to_the_same_folder_and_others_do_not(tmp_path):
    first = RunFolder(tmp_path, "dog", PARTS)
    assert RunFolder(tmp_path, "dog", dict(reversed(PARTS.items()))).path == first.path
    assert RunFolder(tmp_path, "dog", {**PARTS, "rank": 4}).path != first.path


def test_a_new_run_restores_nothing(tmp_path):
    state = new_state()
    RunFolder(tmp_path, "dog", PARTS).restore(state)
    assert state.step == 0


def test_what_was_saved_is_restored_with_the_optimizers_memory(tmp_path):
    saved = stepped(steps=3)
    RunFolder(tmp_path, "dog", PARTS).save(saved)
    restored = new_state()
    RunFolder(tmp_path, "dog", PARTS).restore(restored)
    first, second = saved.copy_tensors(), restored.copy_tensors()
    assert first.keys() == second.keys() and restored.step == 3
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_state_before_is_used_when_the_newest_is_broken(tmp_path):
    run = RunFolder(tmp_path, "dog", PARTS)
    run.save(stepped(steps=1))
    run.save(stepped(steps=2))
    (run.path / STATE).write_bytes(b"cut short")
    state = new_state()
    RunFolder(tmp_path, "dog", PARTS).restore(state)
    assert state.step == 1 and (run.path / PREVIOUS).is_file()


def test_a_state_of_another_shape_is_refused(tmp_path):
    run = RunFolder(tmp_path, "dog", PARTS)
    run.save(stepped())
    other = TrainState({"blocks.0.self_attn.q": LoraPair(torch.ones(5, 3), torch.ones(3, 5))}, {}, 0.1, 0.0)
    with pytest.raises(ValueError, match=r"saved state has \(2, 3\) for lora.blocks.0.self_attn.q.a"):
        run.restore(other)


def test_losses_past_the_restored_step_are_forgotten(tmp_path):
    run = RunFolder(tmp_path, "dog", PARTS)
    for step in (1, 2, 3):
        run.log_losses(step, {"total": 0.5 * step, "region": 1.0})
    with open(run.path / LOSSES, "a") as file:
        file.write("4,0.")  # as a kill leaves it
    run.save(stepped(steps=2))
    RunFolder(tmp_path, "dog", PARTS).restore(new_state())
    assert (run.path / LOSSES).read_text().split() == ["step,total,region", "1,0.5,1", "2,1,1"]


def test_a_run_that_was_killed_before_its_first_state_starts_an_empty_table(tmp_path):
    run = RunFolder(tmp_path, "dog", PARTS)
    for _ in range(2):
        run.restore(new_state())
        for step in (1, 2):
            run.log_losses(step, {"total": 0.5 * step})
    assert read_losses(run.path / LOSSES) == {"step": [1, 2], "total": [0.5, 1]}


def test_files_that_a_killed_process_was_writing_are_deleted(tmp_path):
    run = RunFolder(tmp_path, "dog", PARTS)
    for name in (".state.0123456789ab.tmp.safetensors", ".finished.0123456789ab.tmp"):
        (run.path / name).write_bytes(b"half")
    with run.locked():
        assert not list(run.path.glob(".*"))


@pytest.mark.parametrize(
    "damaged, kept_steps",
    [
        (b"step,total\r\n1,0.5\r\n2,\xff\xfe\r\n3,0.25\r\n", [1, 3]),
        (b"step,total\r\n1,0.5\r\n\x00\x00\x00\r\n", [1]),
        (b"step,total\r\n1,0.5\r\n2,0.5,3,0.5\r\n", [1]),
        (b"step,total\r\n1,0.5\r\n2,nan\r\n", [1]),
        (b"\xff\xd8\xff\r\n1,0.5\r\n", []),
    ],
)
def test_a_damaged_table_is_named_and_set_aside(tmp_path, caplog, damaged, kept_steps):
    run = RunFolder(tmp_path, "dog", PARTS)
    (run.path / LOSSES).write_bytes(damaged)
    with run.locked():
        assert str(run.path / LOSSES) in caplog.text and DAMAGED_LOSSES in caplog.text
    assert (run.path / DAMAGED_LOSSES).read_bytes() == damaged
    assert read_losses(run.path / LOSSES)["step"] == kept_steps
    run.log_losses(4, {"total": 0.125})
    assert read_losses(run.path / LOSSES)["step"] == [*kept_steps, 4]


def test_a_folder_is_for_one_run_at_a_time(tmp_path):
    run = RunFolder(tmp_path, "dog", PARTS)
    with run.locked():
        assert (run.path / OWNER).read_text() == str(os.getpid())
        with pytest.raises(ValueError, match=f"Process {os.getpid()} is training in .*its steps are kept"):
            with RunFolder(tmp_path, "dog", PARTS).locked():
                pass
        with RunFolder(tmp_path, "cat", PARTS).locked():
            pass
    with pytest.raises(KeyboardInterrupt), run.locked():
        raise KeyboardInterrupt
    with run.locked():
        pass


LOCKER = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, sys.argv[1])
    from smra_core.training.run_folder import RunFolder

    with RunFolder(sys.argv[2], "dog", {"data": "abc", "rank": 2}).locked():
        print("locked", flush=True)
        sys.stdin.read()
    """
)


def test_a_second_process_is_told_who_trains_and_a_kill_leaves_no_lock(tmp_path):
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, root, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "locked\n"
        for _ in range(2):  # a refused lock leaves the number of the process readable
            with pytest.raises(ValueError, match=f"Process {process.pid} is training in"):
                with RunFolder(tmp_path, "dog", PARTS).locked():
                    pass
        process.kill()
    with RunFolder(tmp_path, "dog", PARTS).locked():
        assert (RunFolder(tmp_path, "dog", PARTS).path / OWNER).read_text() == str(os.getpid())


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with RunFolder(tmp_path, "dog", PARTS).locked():
        pass
    assert "cannot be locked" in caplog.text and "start no second run of the same" in caplog.text


def test_where_there_are_no_hard_links_the_state_before_is_a_copy(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    run = RunFolder(tmp_path, "dog", PARTS)
    run.save(stepped(steps=1))
    run.save(stepped(steps=2))
    (run.path / STATE).unlink()
    state = new_state()
    RunFolder(tmp_path, "dog", PARTS).restore(state)
    assert state.step == 1


def test_finished_steps_are_remembered(tmp_path):
    run = RunFolder(tmp_path, "dog", PARTS)
    assert run.read_finished_steps() == 0
    run.finish(20)
    assert RunFolder(tmp_path, "dog", PARTS).read_finished_steps() == 20
