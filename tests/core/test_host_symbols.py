"""Everything that the nodes take from ComfyUI stands in one list."""

import ast
from pathlib import Path

from test_layers import HOST_MODULES, ROOT

VERSIONS = ROOT / "nodes" / "host" / "versions.py"


def read_table(name: str) -> set[str]:
    """Dotted names in one of the tables of versions.py, which only ComfyUI can import."""
    for statement in ast.parse(VERSIONS.read_text("utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            table = ast.literal_eval(statement.value)
            return {f"{module}.{symbol}" for module, symbols in table.items() for symbol in symbols}
    raise AssertionError(f"versions.py has no {name}.")


def list_host_symbols(path: Path) -> set[str]:
    """Dotted names of ComfyUI that a file imports, or reads from a module that it imports."""
    modules, symbols = {}, set()
    tree = ast.parse(path.read_text("utf-8"))
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if alias.name.split(".")[0] in HOST_MODULES:
                    modules[alias.asname or alias.name] = alias.name
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            if statement.module.split(".")[0] in HOST_MODULES:
                symbols |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            symbols.add(f"{modules[ast.unparse(node.value)]}.{node.attr}")
    return symbols


def test_every_name_of_comfyui_that_a_node_uses_is_listed():
    used = {symbol for path in (ROOT / "nodes").rglob("*.py") for symbol in list_host_symbols(path)}
    listed = read_table("SYMBOLS") | read_table("NEWER_SYMBOLS")
    assert used - listed == set(), "Add these to SYMBOLS, or to NEWER_SYMBOLS, in nodes/host/versions.py."


def test_no_name_is_listed_that_no_node_uses():
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "nodes").rglob("*.py") if path != VERSIONS)
    code = sources + VERSIONS.read_text("utf-8").split("def log_versions")[1]
    listed = read_table("SYMBOLS") | read_table("NEWER_SYMBOLS")
    assert not {name for name in listed if name.rsplit(".", 1)[1] not in code}


def test_an_alias_and_a_dotted_use_are_both_found(tmp_path):
    file = tmp_path / "node.py"
    file.write_text("import comfy.sd\nimport comfy.utils as u\nfrom comfy.ops import a\ncomfy.sd.VAE, u.x\n")
    assert list_host_symbols(file) == {"comfy.sd.VAE", "comfy.utils.x", "comfy.ops.a"}
