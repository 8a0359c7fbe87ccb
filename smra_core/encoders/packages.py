"""Late import of packages that a single encoder needs, so that the pack's nodes load without them."""

import importlib
from pathlib import Path
from types import ModuleType

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
"""List of the packages that the pack needs and ComfyUI does not bring."""


def import_package(module: str, user: str) -> ModuleType:
    """Import a module, such as `timm.layers`, for an encoder named `user` in messages.

    ImportError with the way to install the package if it is not there; what goes wrong inside of an installed
    package is raised as it is.
    """
    package = module.split(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f"{user} needs the package {package}. Install it with ComfyUI's Python: "
            f"python -m pip install -r {REQUIREMENTS}",
            name=package,
        ) from error
    return importlib.import_module(module)
