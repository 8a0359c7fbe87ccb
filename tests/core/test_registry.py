"""What the registry reads: the project's description, and what a download holds."""

import ast
import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML.")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LEFT_OUT = [
    line
    for line in (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]
ICON_SIDE, BANNER_RATIO = 400, 21 / 9


def test_the_name_is_one_that_the_registry_takes():
    assert re.fullmatch(r"[a-z][a-z0-9_-]*", PROJECT["project"]["name"])
    assert "comfyui" not in PROJECT["project"]["name"]


def test_requirements_and_dependencies_are_one_list():
    assert (ROOT / "requirements.txt").read_text("utf-8").split() == PROJECT["project"]["dependencies"]


def test_the_newest_version_of_the_changelog_is_the_projects():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert versions[0] == PROJECT["project"]["version"]


def test_every_address_that_the_registry_shows_is_given():
    assert {"Repository", "Documentation", "Bug Tracker"} <= set(PROJECT["project"]["urls"])
    comfy = PROJECT["tool"]["comfy"]
    assert all(comfy[key] for key in ("PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"))


@pytest.mark.parametrize("key", ["Icon", "Banner"])
def test_icon_and_banner_are_pictures_of_this_repository_with_the_registrys_shape(key):
    from PIL import Image

    path = PROJECT["tool"]["comfy"][key].split("/main/")[1]
    with Image.open(ROOT / path) as picture:
        width, height = picture.size
    if key == "Icon":
        assert (width, height) == (ICON_SIDE, ICON_SIDE)
    else:
        assert width / height == pytest.approx(BANNER_RATIO, rel=1e-2)


@pytest.mark.parametrize("line", LEFT_OUT)
def test_all_that_a_download_leaves_out_exists(line):
    assert (ROOT / line).exists()


def test_what_is_downloaded_does_not_import_what_is_left_out():
    left_out = [ROOT / line for line in LEFT_OUT]
    for path in sorted((*(ROOT / "nodes").rglob("*.py"), *(ROOT / "smra_core").rglob("*.py"))):
        if any(path.is_relative_to(part) for part in left_out):
            continue
        for statement in ast.parse(path.read_text("utf-8")).body:  # imports inside of functions may fail late
            if isinstance(statement, ast.ImportFrom) and statement.level:
                package = path.parents[statement.level - 1]
                target = package.joinpath(*(statement.module or "").split("."))
                assert not any(target.is_relative_to(part) for part in left_out), path
