"""Packages that only one encoder needs are imported late, and a missing one is named."""

import subprocess
import sys
from pathlib import Path

import pytest

from smra_core.encoders.packages import REQUIREMENTS, import_package

ROOT = Path(__file__).parents[3]
BUILD = {
    "timm": (
        "from smra_core.encoders.dinov2_files import DinoV2Config\n"
        "dinov2.DinoV2(DinoV2Config(384, 1, 6, 1536, False, 2, 0))"
    ),
    "segment_anything": (
        "import torch\nsam.find_subject_mask(torch.nn.Identity(), torch.zeros(3, 8, 8), point=(1, 1))"
    ),
}
USERS = {"timm": "DINOv2", "segment_anything": "SAM"}


def test_modules_load_without_the_packages_and_say_how_to_install_them():
    script = (
        f"import sys\nsys.modules.update(dict.fromkeys({list(BUILD)}))\n"
        "from smra_core.encoders import dinov2, sam, sam_automatic\n"
        "from smra_core.training import motion, subject\n"
        f"for build in {list(BUILD.values())}:\n"
        "    try:\n        exec(build)\n    except ImportError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"{USERS[package]} needs the package {package}. Install it with ComfyUI's Python: "
        f"python -m pip install -r {REQUIREMENTS}"
        for package in BUILD
    ], done.stderr


def test_the_list_of_packages_is_where_the_message_says():
    packages = REQUIREMENTS.read_text("utf-8").replace("-", "_")
    assert all(package in packages for package in USERS)


def test_a_package_that_is_there_but_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_module_inside")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_inside"):
        import_package("half_installed", "SAM")
