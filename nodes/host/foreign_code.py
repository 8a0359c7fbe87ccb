"""Find the code of another node pack in the traceback of an error."""

import sys
import sysconfig
import traceback
from pathlib import Path
from types import CodeType

_PACK = Path(__file__).parents[2]
_OURS = (_PACK / "smra_core", _PACK / "nodes", _PACK / "__init__.py")
_CUSTOM_NODES = "custom_nodes"
_INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages."""


def find_foreign_code(error: BaseException) -> str | None:
    """Return name and file of the innermost function that an error passed through and that belongs neither to
    this pack, nor to ComfyUI, nor to Python and its installed packages; None where there is no such function.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if file.is_absolute() and not _is_known(file):
            return f"{_get_name(frame.f_code)} in {_trim_path(file)}"
    return None


def _is_known(file: Path) -> bool:
    """Whether a file belongs to this pack, to Python and its packages, or to ComfyUI."""
    if any(file.is_relative_to(place) for place in _OURS):
        return True
    if any(folder in file.parts for folder in _INSTALLED):
        return True
    if file.is_relative_to(sysconfig.get_path("stdlib")):
        return True
    host = _find_host_folder()
    if host is None or not file.is_relative_to(host):
        return False
    return _CUSTOM_NODES not in file.relative_to(host).parts


def _find_host_folder() -> Path | None:
    file = getattr(sys.modules.get("comfy.model_management"), "__file__", None)
    return Path(file).parents[1] if file else None


def _get_name(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)  # Python 3.10 has the plain name alone


def _trim_path(file: Path) -> str:
    """Return the path from the pack's folder on, or the whole path outside of ComfyUI's custom_nodes."""
    parts = file.parts
    if _CUSTOM_NODES not in parts:
        return str(file)
    return "/".join(parts[parts.index(_CUSTOM_NODES) + 1 :])
