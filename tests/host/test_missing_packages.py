"""A host without timm and segment_anything loads every node; what needs a package fails in one sentence."""

import json
import subprocess
from pathlib import Path

import pytest
from comfyui import PACK

SCRIPT = Path(__file__).parent / "inside" / "without_packages.py"
SECONDS = 600
NODES = 27


@pytest.fixture(scope="module")
def results(host):
    done = subprocess.run(
        [host.python, SCRIPT],
        cwd=host.root,
        env=host.environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return json.loads(lines[0].removeprefix("RESULTS "))


def test_every_node_loads(results):
    assert results["nodes"] == NODES


@pytest.mark.parametrize(("name", "package"), [("dinov2", "timm"), ("sam", "segment_anything")])
def test_what_needs_a_package_names_it_and_the_command(results, name, package):
    assert package in results[name] and "\n" not in results[name]
    assert f"python -m pip install -r {PACK / 'requirements.txt'}" in results[name]


@pytest.mark.parametrize("name", ["without dinov2", "motion"])
def test_what_needs_none_of_them_works(results, name):
    assert results[name] == ""
