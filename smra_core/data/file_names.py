"""Compare file names as people see them: Unicode in either normal form, upper and lower case alike."""

import os
import unicodedata
from pathlib import Path, PurePosixPath


def fold_name(name: str) -> str:
    """Return the form in which names that look alike are equal.

    macOS writes an accented letter as two code points (NFD) where others write one (NFC).
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def find_similar_path(folder: Path, relative: str) -> Path:
    """Return the existing path that a relative name means; the name as it is written when nothing matches it.

    A part of the path that is not there as it is written stands for the first entry of its folder that looks
    alike.
    """
    path = folder
    for part in PurePosixPath(relative).parts:
        exact = path / part
        path = exact if os.path.exists(exact) else _find_similar_entry(path, part) or exact
    return path


def _find_similar_entry(folder: Path, name: str) -> Path | None:
    try:
        entries = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return None
    return next((folder / entry for entry in entries if fold_name(entry) == fold_name(name)), None)


def list_visible_files(folder: Path) -> list[str]:
    """List the names of a folder's files, sorted, without hidden files and tables; empty without a folder."""
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [
        name for name in names if not name.startswith(".") and not name.lower().endswith((".csv", ".jsonl"))
    ]


def list_visible_folders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted, without hidden ones; empty without a folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
