"""Host tests run against a real ComfyUI: `inside` in its interpreter, the others over HTTP."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from comfyui import find_host, find_missing_requirements, served  # noqa: E402

# These need the host's modules; test_inside_the_host.py starts them there.
collect_ignore = ["inside"]


@pytest.fixture(scope="session")
def host():
    found = find_host()
    if found is None:
        pytest.skip("No ComfyUI found: set COMFYUI_PATH (and COMFYUI_PYTHON, its interpreter).")
    if missing := find_missing_requirements(found):
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def server(host, tmp_path_factory):
    with served(host, tmp_path_factory.mktemp("comfyui") / "base") as running:
        yield running
