"""Imports point one way: nodes to the core, and inside the core along the order of its packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE, NODES = ROOT / "smra_core", ROOT / "nodes"
HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "nodes"}
LAYERS = (
    {"storage", "wan"},
    {"data", "lora", "encoders", "decoding"},
    {"training"},
    {"evaluation", "standalone"},
    {"miniature"},
    {"grid"},
    {"commands"},
    {"cli", "__main__", "__init__"},
)
"""A package imports only from packages further up in this list; those of one layer do not import each other,
but for `wan`, `__main__` and itself.
"""
HEAVY = ["diffusers", "timm", "transformers", "scipy", "peft", "torchvision", "segment_anything"]
"""Packages that take long to import, which ComfyUI's start must not wait for."""
PAIRS_WITHIN_A_LAYER = {
    ("__main__", "cli"),
    ("cli", "__init__"),
    ("training", "__init__"),
}
NOT_FOR_NODES = (
    "standalone", "cli", "commands", "grid", "miniature.demo", "miniature.bench", "miniature.recipe",
    "miniature.model_files",
)  # fmt: skip
"""What nodes may not import: ComfyUI does that itself, or it is the bench's."""


def imported_names(path: Path, root: Path = ROOT) -> set[str]:
    """Dotted names that a file imports, relative ones resolved from the repository's root."""
    package = ".".join(path.relative_to(root).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def layer_of(package: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if package in layer)


def wrong_imports(path: Path, root: Path = ROOT) -> list[str]:
    """Packages of the core that a file of the core may not import."""
    relative = path.relative_to(root / "smra_core")
    own = relative.parts[0] if len(relative.parts) > 1 else relative.stem
    used = {name.split(".")[1] for name in imported_names(path, root) if name.startswith("smra_core.")}
    packages = {entry.stem for entry in CORE.iterdir()}
    others = {package for package in used & packages if package != own}
    return [
        package
        for package in others
        if layer_of(package) >= layer_of(own) and (own, package) not in PAIRS_WITHIN_A_LAYER
    ]


def test_the_core_imports_nothing_of_the_host():
    files = list(CORE.rglob("*.py"))
    assert len(files) > 90
    guilty = {str(path): {name.split(".")[0] for name in imported_names(path)} for path in files}
    assert not {path: found & HOST_MODULES for path, found in guilty.items() if found & HOST_MODULES}


def test_packages_import_only_from_packages_before_them():
    guilty = {str(path.relative_to(ROOT)): wrong_imports(path) for path in CORE.rglob("*.py")}
    assert not {path: packages for path, packages in guilty.items() if packages}


def test_every_package_of_the_core_has_its_layer():
    packages = {path.name for path in CORE.iterdir() if (path / "__init__.py").is_file()}
    assert packages == set.union(*LAYERS[:7])


def test_nodes_import_neither_what_comfyui_does_itself_nor_the_bench():
    forbidden = tuple(f"smra_core.{name}" for name in NOT_FOR_NODES)
    guilty = {
        str(path.relative_to(ROOT)): [name for name in imported_names(path) if name.startswith(forbidden)]
        for path in NODES.rglob("*.py")
    }
    assert not {path: names for path, names in guilty.items() if names}


def test_packages_have_a_sentence_and_nothing_else_in_their_init():
    for path in (*CORE.rglob("__init__.py"), *NODES.rglob("__init__.py")):
        if path.parent in (CORE, NODES):
            continue  # the core's holds the version, the nodes' the table of nodes
        body = ast.parse(path.read_text("utf-8")).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), path


def test_all_that_nodes_import_loads_without_the_models_packages():
    modules = sorted(
        {
            name
            for path in NODES.rglob("*.py")
            for name in imported_names(path)
            if name.startswith("smra_core.") and (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()
        }
    )
    assert len(modules) > 25
    script = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))\n"
        f"[importlib.import_module(name) for name in {modules}]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "package, line, wrong",
    [
        ("lora", "from ..training.mora import MotionSettings", ["training"]),
        ("lora", "from ..data.crop import Size", ["data"]),
        ("storage", "def f():\n    from ..wan.spec import WanSpec", ["wan"]),
        ("training", "from ..wan.spec import WanSpec", []),
        ("training", "from .mora import MotionSettings", []),
    ],
)
def test_the_check_sees_an_import_against_the_order(tmp_path, package, line, wrong):
    path = tmp_path / "smra_core" / package / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert wrong_imports(path, tmp_path) == wrong
