"""The same commands on a local Ray cluster of two CPUs; skipped where Ray is not installed."""

import importlib.util
import os
import signal
import sys
import time

import pytest

from smra_core.grid import ray_cluster
from smra_core.grid.ray_cluster import RayCluster

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed.")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"smrabooth\[cluster\]"):
        RayCluster(None)


@pytest.fixture
def cluster(monkeypatch):
    import ray

    start = ray.init
    monkeypatch.setattr(ray, "init", lambda **options: start(num_cpus=2, include_dashboard=False, **options))
    with RayCluster(None) as running:
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

    def run_once_killed(command, log):
        is_first = not mark.exists()
        mark.write_text(str(os.getpid()))
        if is_first:
            time.sleep(60)
        return "done"

    cluster._run = cluster.ray.remote(max_retries=ray_cluster.WORKER_TRIES)(run_once_killed)
    cluster.start("task", [], tmp_path / "task.log", 1)
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.05)
    os.kill(int(mark.read_text()), signal.SIGKILL)
    assert cluster.wait() == ("task", "done")
