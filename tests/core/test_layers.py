"""The core is headless, and the pack's imports point one way."""

import ast
from pathlib import Path

CORE = Path(__file__).parents[2] / "smra_core"
HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "nodes"}


def imported_modules(source: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module.split(".")[0])
    return modules


def test_the_core_imports_nothing_of_the_host():
    files = list(CORE.rglob("*.py"))
    assert len(files) > 5
    guilty = {str(path): imported_modules(path.read_text("utf-8")) & HOST_MODULES for path in files}
    assert not {path: names for path, names in guilty.items() if names}


def test_the_check_sees_an_import_inside_a_function():
    assert imported_modules("def f():\n    import comfy.sd\n") == {"comfy"}
