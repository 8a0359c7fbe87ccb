"""The same commands on a local Ray cluster of two CPUs; skipped where Ray is not installed."""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from smra_core.grid import ray_cluster
from smra_core.grid.command_run import CommandEnd
from smra_core.grid.ray_cluster import RayCluster, TaskEnd, run_on_node
from smra_core.miniature.held_out_files import write_subject

DONE = CommandEnd(0, {}, "", 1)
SMALL = "--width 64 --height 64 --batch-size 1 --accumulate 1 --rank 2 --projector-width 8 --save-every 5"

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed.")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"smrabooth\[cluster\]"):
        RayCluster(None, None)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    import ray

    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # what else runs here shall kill no worker
    start = ray.init
    monkeypatch.setattr(ray, "init", lambda **options: start(num_cpus=2, include_dashboard=False, **options))
    with RayCluster(None, tmp_path / "grid") as running:
        yield running


@needs_ray
def test_commands_run_on_the_cluster_and_bad_input_is_reported(cluster, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text('{subjects: {a: ~}, motions: {b: ~}, prompts: ["{subject} {motion}"]}')
    good, bad = ["grid", str(file), "--dry-run", "--json"], ["inspect", str(tmp_path / "gone")]
    for name, command in (("good", good), ("bad", bad)):
        cluster.start(name, command, tmp_path / f"{name}.log", 1)
    ends = dict(cluster.wait() for _ in range(2))
    assert ends["good"].result == {"trainings": 0, "trained": 0, "cells": 1, "sampled": 0}
    assert ends["bad"].code == 1 and "gone" in ends["bad"].said


@needs_ray
def test_a_command_whose_worker_is_killed_runs_again(cluster, tmp_path):
    mark = tmp_path / "worker"

    def run_once_killed(command, log, *others):
        is_first = not mark.exists()
        mark.write_text(str(os.getpid()))
        if is_first:
            time.sleep(60)
        return TaskEnd(DONE, {})

    cluster._run = cluster.ray.remote(max_retries=ray_cluster.WORKER_TRIES)(run_once_killed)
    cluster.start("task", [], tmp_path / "task.log", 1)
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.05)
    os.kill(int(mark.read_text()), signal.SIGKILL)
    assert cluster.wait() == ("task", DONE)


def make_a_lora(command, log, processes):
    """Stand in for a training: log a line, and write what the command's first argument names."""
    made = Path(command[0])
    for path in (log, made):
        path.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("trained", encoding="utf-8")
    made.write_bytes(b"a LoRA")
    return CommandEnd(0, {"path": str(made)}, "trained", 1)


def test_results_come_back_where_a_node_does_not_see_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_cluster, "run_command", make_a_lora)
    made, log, mark, given = (tmp_path / name for name in ("made", "log", "mark", "node/given.safetensors"))
    end, files = run_on_node([str(made)], log, 1, mark, {str(given): b"another"})
    assert end.code == 0 and files == {str(made): b"a LoRA", str(log): b"trained"}
    assert given.read_bytes() == b"another"
    mark.touch()
    assert run_on_node([str(made)], log, 1, mark, {}).files == {}


@needs_ray
def test_loras_go_and_results_come_as_objects_without_shared_storage(cluster, tmp_path):
    def run_elsewhere(command, log, processes, mark, given):
        """Run as on a node without the folder, whose files vanish with it."""
        ((path, reference),) = given.items()
        Path(path).unlink()
        content = ray_cluster._get(reference)
        return TaskEnd(DONE, {command[0]: content + b" and a video"})

    lora, video = tmp_path / "grid" / "dog.safetensors", tmp_path / "grid" / "cells" / "a.mp4"
    lora.write_bytes(b"a LoRA")
    cluster._run = cluster.ray.remote(run_elsewhere)
    cluster.start("cell", [str(video), str(lora)], tmp_path / "log", 1)
    assert cluster.wait() == ("cell", DONE)
    assert video.read_bytes() == b"a LoRA and a video"


@needs_ray
def test_a_training_whose_worker_is_killed_goes_on_from_its_run_folder(cluster, tmp_path):
    data = write_subject(tmp_path / "ball", "ball")
    out, log = tmp_path / "out", tmp_path / "train.log"
    command = ["train-subject", str(data), "--json", "--steps", "40", *SMALL.split(), "--out", str(out)]
    cluster.start("training", command, log, 1)
    wait_until(lambda: count_steps(out) >= 10)
    find_child(str(out)).parent().kill()
    task, end = cluster.wait()
    assert (task, end.code, end.result["steps"]) == ("training", 0, 40)
    assert count_steps(out) == 40


def find_child(text):
    """The process of the command that holds a text, whose parent is Ray's worker."""
    psutil = pytest.importorskip("psutil")
    running = psutil.process_iter(["cmdline"])
    return next(each for each in running if {"smra_core.grid.child", text} <= set(each.info["cmdline"] or ()))


def count_steps(out):
    files = list(out.glob("runs/*/losses.csv"))
    return len(files[0].read_text("utf-8").splitlines()) - 1 if files else 0


def wait_until(is_true, seconds=600):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
