"""The state of the files in a folder, by which ComfyUI sees that a node must read them again."""

import glob
from pathlib import Path

from ...smra_core.data.metadata_table import TABLE_NAMES, TABLE_SUFFIXES
from ...smra_core.data.picture import PICTURE_SUFFIXES
from ..host.input_folder import resolve_input


def describe_files(folder: str | None) -> str:
    """Return names, sizes and times of the files, by which ComfyUI sees that they have changed.

    For a linked folder ComfyUI asks without its value (None). The answer is then always the same, so that the
    node runs again when the linked text changes and not at every queue.
    """
    if folder is None or not folder.strip():
        return ""
    files = sorted(_list_read_files(resolve_input(folder)))
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return repr(states)


def _list_read_files(path: Path) -> set[Path]:
    """Return the files that reading this path may open: those in it, captions beside it, and tables."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        path = path.parent
    beside = set(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    tables = {folder / name for folder in (path.parent, path.parent.parent) for name in TABLE_NAMES}
    if path.is_dir():
        return {*path.rglob("*"), *beside, *tables}
    is_sequence = not path.is_file() or path.suffix.lower() in PICTURE_SUFFIXES
    return {path, *(path.parent.glob("*") if is_sequence else beside), *tables}
