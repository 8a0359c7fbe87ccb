"""Read the files and captions of a data set from metadata.csv, metadata.jsonl or caption files, never from
outside its folder.
"""

import codecs
import csv
import io
import json
import os
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from .file_names import find_similar_path

TABLE_NAMES = ("metadata.csv", "metadata.jsonl")
"""Names of a folder's table; the first that is there is read."""
PICTURE_COLUMNS = ("image", "file_name", "video")
"""Columns that may name a picture, most specific first; the authors' subject tables call it `video`."""
VIDEO_COLUMNS = ("video", "file_name", "video_path")
MASK_COLUMNS = ("mask",)
CAPTION_COLUMNS = ("prompt", "caption", "text")
TABLE_SUFFIXES = (".csv", ".jsonl")
CAPTION_SUFFIXES = (".txt", ".caption")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and their encodings; UTF-32's begins as UTF-16's does and comes first."""


class Row(NamedTuple):
    """One row of a table."""

    table: Path
    line: int
    """Line number in the file, from 1."""
    cells: dict[str, str]
    """Cell text by column name, in lower case, with single spaces."""

    def get_cell(self, columns: tuple[str, ...]) -> str:
        """Return the text of the first of these columns that is filled in; an empty string when none is."""
        return next((self.cells[column] for column in columns if self.cells.get(column)), "")

    def find_file(self, columns: tuple[str, ...]) -> Path | None:
        """Return the file that these columns name, None when they are empty.

        Raises ValueError as `find_file_inside` does.
        """
        name = self.get_cell(columns)
        return find_file_inside(self.table.parent, name, f"{self.table}, line {self.line}") if name else None

    def is_about(self, columns: tuple[str, ...], file: Path) -> bool:
        """Return whether these columns name that file."""
        return any(
            _resolve_file(path) == file.resolve()
            for path in _list_candidates(self.table.parent, self.get_cell(columns))
        )


def find_table(path: Path) -> Path | None:
    """Return the table at a path: the file itself, or the folder's metadata.csv or metadata.jsonl; None
    without a table.
    """
    if path.is_file():
        return path if path.suffix.lower() in TABLE_SUFFIXES else None
    for name in TABLE_NAMES:
        if find_similar_path(path, name).is_file():
            return find_file_inside(path, name, str(path))
    return None


def read_table(table: Path, columns: tuple[str, ...]) -> list[Row]:
    """Read the rows of a table that has at least one of the columns, in upper or lower case.

    It is comma-separated, or by its ending .jsonl has a JSON object on each line. Raises ValueError when the
    file is not UTF-8 (or UTF-16 with a mark), is not a table, or has none of the columns.
    """
    if table.suffix.lower() == ".jsonl":
        return _read_json_lines(table, columns)
    try:
        reader = csv.reader(io.StringIO(_read_text(table), newline=""), strict=True)
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(
            f"{table} is not a comma-separated table ({error}). Save it again as CSV, UTF-8."
        ) from error
    header = [name.strip().lower() for name in lines[0][1]] if lines else []
    repeated = {name for name in header if name and header.count(name) > 1}
    if repeated or not set(columns) & set(header):
        raise ValueError(
            f"{table} has the columns {header}; it needs at least one of {list(columns)}, each "
            "column once, separated by commas."
        )
    rows = [_build_row(table, line, header, cells) for line, cells in lines[1:] if any(cells)]
    if not rows:
        raise ValueError(f"{table} has a header and no rows. Add one row per file.")
    return rows


def _build_row(table: Path, line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) > len(header):
        raise ValueError(
            f"{table}, line {line} has {len(cells)} cells under {len(header)} columns. Put quotes around "
            "captions that contain a comma."
        )
    return Row(table, line, {name: " ".join(cell.split()) for name, cell in zip(header, cells, strict=False)})


def _read_json_lines(table: Path, columns: tuple[str, ...]) -> list[Row]:
    rows = []
    for number, line in enumerate(_read_text(table).split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{table}, line {number} is no JSON ({error}). Write one object on each line, such as "
                '{"file_name": "a.mp4", "text": "a caption"}.'
            ) from error
        texts = {}
        if isinstance(cells, dict):
            texts = {
                key.strip().lower(): " ".join(text.split())
                for key, text in cells.items()
                if isinstance(text, str)
            }
        if not set(columns) & set(texts):
            raise ValueError(
                f"{table}, line {number} has no text under any of {list(columns)}. Write one object on each "
                'line, such as {"file_name": "a.mp4", "text": "a caption"}.'
            )
        rows.append(Row(table, number, texts))
    if not rows:
        raise ValueError(f"{table} has no lines. Add one for each file.")
    return rows


def find_file_inside(folder: Path, name: str, source: str) -> Path:
    """Return the file that a data set in `folder` calls `name`, relative to the folder or to its parent.

    The authors' motion tables give paths relative to the parent. In both cases the file must lie in the
    folder after links are followed. Raises ValueError, with `source` as the place that names the file, when
    the file is absent or lies elsewhere.
    """
    if PureWindowsPath(name).anchor:
        raise ValueError(f"{source} names {name!r}, an absolute path. Write it relative to {folder}.")
    existing = [(path, real) for path in _list_candidates(folder, name) if (real := _resolve_file(path))]
    for path, real in existing:
        if real.is_relative_to(folder.resolve()):
            return path  # not the real path: captions and masks are found by the name of the link
    if existing:
        raise ValueError(
            f"{source} names {name!r}, which leads out of {folder}. Put the file itself into the folder."
        )
    raise ValueError(
        f"{source} names {name!r}, and there is no such file in {folder}. Add the file or correct the name."
    )


def _list_candidates(folder: Path, name: str) -> list[Path]:
    home = Path(os.path.abspath(folder))
    relative = name.replace("\\", "/")  # tables made on Windows
    return [find_similar_path(home, relative), find_similar_path(home.parent, relative)]


def _resolve_file(path: Path) -> Path | None:
    """Return the file with links followed; None when it does not exist or its name is not valid."""
    try:
        real = path.resolve()
        return real if real.is_file() else None
    except (OSError, RuntimeError, ValueError):  # name too long, loop of links, NUL or lone surrogate
        return None


def find_caption_beside(file: Path) -> Path | None:
    """Return the caption file of the same stem, .txt or as others call it .caption; None without one."""
    for suffix in CAPTION_SUFFIXES:
        found = find_similar_path(file.parent, file.stem + suffix)
        if found.is_file():
            return found
    return None


def read_caption_beside(folder: Path, file: Path) -> str:
    """Return the caption in the caption file of the same stem, on one line; an empty string without such a
    file.

    Raises ValueError when the caption file is not UTF-8 (or UTF-16 with a mark) or leads out of the folder.
    """
    text = find_caption_beside(file)
    if text is None:
        return ""
    inside = find_file_inside(folder, os.path.relpath(text, folder), str(folder))
    return " ".join(_read_text(inside).split())


def _read_text(path: Path) -> str:
    """Read a text in UTF-8, or in UTF-16 or UTF-32 that begins with a byte order mark."""
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}). Save it "
            "as UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{path} is not UTF-8 text (character {text.index(chr(0))} is NUL, as in UTF-16 without a mark). "
            "Save it as UTF-8."
        )
    return text
