"""Starts the tests of `inside` in the host's own interpreter, once, and reports them file by file."""

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import pytest
from comfyui import PACK

INSIDE = Path(__file__).parent / "inside"
SECONDS = 1500


class Case(NamedTuple):
    name: str
    failed: str
    skipped: str
    """Why; empty for a test that ran."""


@pytest.fixture(scope="session")
def results(host, tmp_path_factory):
    """Every test's name, failure and reason to skip, by file."""
    if subprocess.run([host.python, "-c", "import pytest"], capture_output=True).returncode:
        pytest.skip(f"{host.python} has no pytest: install it there to run the tests inside ComfyUI.")
    report = tmp_path_factory.mktemp("inside") / "report.xml"
    options = [
        "-c",
        "/dev/null",
        "--rootdir",
        PACK,
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    command = [host.python, "-m", "pytest", *options, f"--junitxml={report}", INSIDE]
    done = subprocess.run(
        list(map(str, command)),
        cwd=host.root,
        env=host.environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert report.is_file(), f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    by_file: dict[str, list[Case]] = {}
    for element in ElementTree.parse(report).iter("testcase"):
        failed = "\n".join(part.text or "" for part in element if part.tag in ("failure", "error"))
        skipped = next((part.get("message") for part in element if part.tag == "skipped"), "")
        case = Case(element.get("name"), failed, skipped)
        file = element.get("classname") or case.name  # a file skipped as a whole is a case without a class
        by_file.setdefault(file.rpartition(".")[2], []).append(case)
    return by_file


@pytest.mark.parametrize("name", sorted(path.stem for path in INSIDE.glob("test_*.py")))
def test_inside(results, name):
    cases = results.get(name, [])
    assert cases, f"Nothing of {name} was run."
    failed = [f"{case.name}:\n{case.failed}" for case in cases if case.failed]
    assert not failed, "\n\n".join(failed)
    if all(case.skipped for case in cases):
        pytest.skip(cases[0].skipped)
