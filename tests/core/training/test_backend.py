"""Both backends have every part of the protocol; pyright compares the types (see pyproject.toml)."""

import ast
from pathlib import Path

import pytest

from smra_core.standalone.backend import StandaloneBackend
from smra_core.training.backend import Backend

COMFY = Path(__file__).parents[3] / "nodes" / "host" / "backend.py"
MEMBERS = {name for name in vars(Backend) if not name.startswith("_")}


def members_of(source, name):
    """Methods, properties and attributes set on self in a class, read from its source."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    body = next(node for node in classes if node.name == name)
    methods = {node.name for node in body.body if isinstance(node, ast.FunctionDef)}
    stored = [node for node in ast.walk(body) if isinstance(getattr(node, "ctx", None), ast.Store)]
    return methods | {node.attr for node in stored if ast.unparse(getattr(node, "value", node)) == "self"}


def test_the_protocol_names_all_that_training_uses():
    folder = Path(__file__).parents[3] / "smra_core" / "training"
    used = {
        node.attr
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "backend"
    }
    assert len(used) > 8 and used <= MEMBERS


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_both_backends_have_it(member):
    assert hasattr(StandaloneBackend, member) or member in StandaloneBackend.__dataclass_fields__
    assert member in members_of(COMFY.read_text("utf-8"), "ComfyBackend")
