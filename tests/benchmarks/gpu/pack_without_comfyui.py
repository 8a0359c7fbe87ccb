"""The pack's nodes on a machine without ComfyUI, as far as they need nothing of it but a module's name.

Only ComfyUI can import the pack as a whole, so that single files of it are imported here, in a package of
another name. The core is the same one that everything else uses.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]
PACKAGE = "pack_without_comfyui"
CORE = f"{PACKAGE}.smra_core"


def import_file(name: str) -> ModuleType:
    """Import a file of the pack, given its name in it, such as `nodes.host.offloaded_layers`."""
    for package, folder in ((PACKAGE, ROOT), (f"{PACKAGE}.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            made = sys.modules[package] = ModuleType(package)
            made.__path__ = [str(folder)]
    if not any(isinstance(finder, _SameCore) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SameCore())
    return import_module(f"{PACKAGE}.{name}")


class _SameCore(MetaPathFinder, Loader):
    """Finds the core inside of the package by the core's own name, so that no module of it is there twice."""

    def find_spec(self, name, path, target=None) -> ModuleSpec | None:
        """Return where a module of the core is found, and None for all others."""
        return ModuleSpec(name, self) if name == CORE or name.startswith(f"{CORE}.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself, which the import is about to give another spec."""
        module = import_module(spec.name.removeprefix(f"{PACKAGE}."))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back; it has run already."""
        module.__spec__ = module.__spec__.loader_state


@contextmanager
def empty_comfyui() -> Iterator[None]:
    """Answer `import comfy.ops` by an empty module."""
    names = ("comfy", "comfy.ops")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules["comfy"], sys.modules["comfy.ops"] = ModuleType("comfy"), ModuleType("comfy.ops")
    sys.modules["comfy"].ops = sys.modules["comfy.ops"]
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
