"""Host tests run against a real ComfyUI: `inside` in its interpreter, the others over HTTP."""

import json
import shutil
import subprocess
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
    base = tmp_path_factory.mktemp("comfyui") / "base"
    (base / "custom_nodes").mkdir(parents=True)
    for own_node in ("strength_probe.py", "random_clip_vision.py", "random_vae.py"):
        shutil.copy(Path(__file__).with_name(own_node), base / "custom_nodes")
    with served(host, base) as running:
        yield running


@pytest.fixture(scope="session")
def templates(host):
    """The host's own graphs by name, where its package of templates brings them as JSON."""
    command = (
        "from importlib.metadata import requires; import comfyui_workflow_templates_json as t; "
        "assert any('templates-json' in line for line in requires('comfyui-workflow-templates') or []); "
        "print(t.__path__[0])"
    )
    found = subprocess.run([host.python, "-c", command], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("This host's templates come without the package comfyui_workflow_templates_json.")
    files = Path(found.stdout.strip(), "templates").glob("*wan*.json")
    return {path.stem: json.loads(path.read_text("utf-8")) for path in files}
