"""The files and captions of a data set: metadata.csv, caption files, and which paths may be followed."""

import csv
import io
import os
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

TABLE_NAME = "metadata.csv"
PICTURE_COLUMNS = ("image", "file_name", "video")
"""Columns that may name a picture, best first; the authors' subject tables call it `video`."""
VIDEO_COLUMNS = ("video", "file_name")
MASK_COLUMNS = ("mask",)
CAPTION_COLUMNS = ("prompt", "caption", "text")


class Row(NamedTuple):
    """One line of a table."""

    table: Path
    line: int
    cells: dict[str, str]

    def get_cell(self, columns: tuple[str, ...]) -> str:
        """The first of these columns that is filled in; an empty string when none is."""
        return next((self.cells[column] for column in columns if self.cells.get(column)), "")

    def find_file(self, columns: tuple[str, ...]) -> Path | None:
        """The file that these columns name, None when they are empty; ValueError as `find_file_inside`."""
        name = self.get_cell(columns)
        return find_file_inside(self.table.parent, name, f"{self.table}, line {self.line}") if name else None

    def is_about(self, columns: tuple[str, ...], file: Path) -> bool:
        """Whether these columns name that file."""
        return any(
            _resolve_file(path) == file.resolve()
            for path in _list_candidates(self.table.parent, self.get_cell(columns))
        )


def find_table(path: Path) -> Path | None:
    """The table meant by a path: the csv file itself, or the folder's metadata.csv; None when there is
    none.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".csv" else None
    table = path / TABLE_NAME
    return find_file_inside(path, TABLE_NAME, str(path)) if table.is_file() else None


def read_table(table: Path, columns: tuple[str, ...]) -> list[Row]:
    """Rows of a comma-separated table whose header, in any case, has one of the columns.

    ValueError when the file is not UTF-8, not a table, or lacks all the columns.
    """
    try:
        reader = csv.reader(io.StringIO(_read_utf8(table), newline=""), strict=True)
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(
            f"{table} is not a comma-separated table ({error}). Save it again as CSV, UTF-8."
        ) from error
    header = [name.strip().lower() for name in lines[0][1]] if lines else []
    repeated = {name for name in header if name and header.count(name) > 1}
    if repeated or not set(columns) & set(header):
        raise ValueError(
            f"{table} has the columns {header}; it needs one of {list(columns)}, each column once, "
            "separated by commas."
        )
    rows = [_build_row(table, line, header, cells) for line, cells in lines[1:] if any(cells)]
    if not rows:
        raise ValueError(f"{table} has a header and no rows. Add one line per file.")
    return rows


def _build_row(table: Path, line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) > len(header):
        raise ValueError(
            f"{table}, line {line} has {len(cells)} cells under {len(header)} columns. Put quotes around "
            "captions that contain a comma."
        )
    return Row(table, line, {name: " ".join(cell.split()) for name, cell in zip(header, cells, strict=False)})


def find_file_inside(folder: Path, name: str, source: str) -> Path:
    """The file that a data set in `folder` calls `name`, relative to the folder or to its parent.

    The second is how the authors' motion tables are written. Either way the file must lie in the folder,
    links followed. ValueError, saying that `source` named it, when it is absent or elsewhere.
    """
    if PureWindowsPath(name).anchor:
        raise ValueError(f"{source} names {name!r}, an absolute path. Write it relative to {folder}.")
    found = [(path, real) for path in _list_candidates(folder, name) if (real := _resolve_file(path))]
    for path, real in found:
        if real.is_relative_to(folder.resolve()):
            return path  # not the real path: a link has the name that captions and masks go by
    if found:
        raise ValueError(
            f"{source} names {name!r}, which leads out of {folder}. Put the file into the folder."
        )
    raise ValueError(
        f"{source} names {name!r}, and there is no such file in {folder}. Add it or mend the name."
    )


def _list_candidates(folder: Path, name: str) -> list[Path]:
    home = Path(os.path.abspath(folder))
    written = name.replace("\\", "/")  # tables made on Windows
    return [home / written, home.parent / written]


def _resolve_file(path: Path) -> Path | None:
    """The file with links followed; None when there is none or the name cannot be one."""
    try:
        real = path.resolve()
        return real if real.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL or a lone surrogate
        return None


def read_caption_beside(folder: Path, file: Path) -> str:
    """Caption in the .txt file with the same stem, on one line; an empty string when there is none.

    ValueError when the caption file is not UTF-8 or leads out of the folder.
    """
    text = file.with_suffix(".txt")
    if not text.is_file():
        return ""
    inside = find_file_inside(folder, os.path.relpath(text, folder), str(folder))
    return " ".join(_read_utf8(inside).split())


def _read_utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}). Save it "
            "as UTF-8."
        ) from error
