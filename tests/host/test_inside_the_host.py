"""Starts the tests of `inside` in the host's own interpreter, once, and reports them file by file."""

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from comfyui import PACK

INSIDE = Path(__file__).parent / "inside"
SECONDS = 1500


@pytest.fixture(scope="session")
def results(host, tmp_path_factory):
    """Failures, and the number of tests, by file."""
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
    by_file: dict[str, list[tuple[str, str]]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        text = "\n".join(part.text or "" for part in case if part.tag in ("failure", "error"))
        by_file.setdefault(case.get("classname").rpartition(".")[2], []).append((case.get("name"), text))
    return by_file


@pytest.mark.parametrize("name", sorted(path.stem for path in INSIDE.glob("test_*.py")))
def test_inside(results, name):
    cases = results.get(name, [])
    failed = [f"{case}:\n{text}" for case, text in cases if text]
    assert cases, f"Nothing of {name} was run."
    assert not failed, "\n\n".join(failed)
