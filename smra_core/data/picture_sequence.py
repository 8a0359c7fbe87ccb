"""Read clips that are pictures: GIF, animated WebP, PNG and AVIF, and numbered pictures in a folder."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .crop import Size, cover_box, describe_crop, describe_enlargement, fit
from .file_names import list_visible_files
from .frame_rate import measure_timing
from .metadata_table import find_file_inside
from .picture import PICTURE_SUFFIXES, convert_to_rgb, read_picture
from .video import Selection, Video, add_new_notes, build_video, check_selection

_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")
_ANIMATIONS = (b"GIF8", b"RIFF", b"\x89PNG", b"ftypavi")
"""First bytes of files that may hold an animation."""
_SHORTEST_MS = 20
_UNSET_MS = 100
"""Milliseconds that browsers show a frame whose stated duration is below the shortest one, mostly 0."""
_TIMED_FRAMES = 2000
_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)$", re.DOTALL)
_PATTERN = re.compile(r"%0?\d*d|#+")


class PictureSequence(NamedTuple):
    """Numbered pictures of one folder, in the order of their numbers."""

    folder: Path
    files: list[Path]
    notes: list[str]
    """Notes on missing numbers and on pictures of the folder that are not part of it."""


def is_animation(path: Path) -> bool:
    """Return whether a file's content is a GIF or another picture of several frames."""
    if not path.is_file():
        return False
    with open(path, "rb") as content:
        head = content.read(12)
    if not head.startswith(_ANIMATIONS) and not head[4:].startswith(_ANIMATIONS):
        return False
    if head.startswith(b"GIF8"):
        return True
    try:
        with Image.open(path, formats=_FORMATS) as file:
            return getattr(file, "n_frames", 1) > 1
    except Exception:  # decoders raise whatever a damaged file leads them to; the reader names the file
        return False


def read_animation(path: Path, size: Size, selection: Selection) -> Video:
    """Read frames of an animated picture by its durations, resized to cover `size` and cropped.

    Durations below 20 ms count as 100 ms, as in browsers. Transparent parts become white. Raises ValueError,
    with the path, when the file cannot be read or has no frame from `selection.start` on.
    """
    check_selection(path, size, selection)
    notes: list[str] = []
    try:
        times = islice((time for time, _ in _decode(path, [])), selection.start + _TIMED_FRAMES)
        timing = measure_timing(times, None)

        def convert(image: Image.Image) -> np.ndarray:
            rgb, _, alpha_notes = convert_to_rgb(image)
            return _crop(rgb, size, alpha_notes, notes)

        return build_video(path, _decode(path, notes), convert, timing, selection, notes)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as an animation ({error}). Convert it to mp4 (H.264) and try again."
        ) from error


def read_animation_size(path: Path) -> Size:
    """Return width and height of an animated picture. Raises ValueError when it cannot be read."""
    try:
        with Image.open(path, formats=_FORMATS) as file:
            return file.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as an animation ({error}). Convert it to mp4 (H.264) and try again."
        ) from error


def _decode(path: Path, notes: list[str]) -> Iterator[tuple[float, Image.Image]]:
    """Yield time in seconds and picture of each frame of an animation."""
    time = 0.0
    with Image.open(path, formats=_FORMATS) as file:
        for number in range(getattr(file, "n_frames", 1)):
            file.seek(number)
            file.load()
            yield time, file.copy()
            duration = file.info.get("duration") or 0
            if duration < _SHORTEST_MS:
                add_new_notes(notes, [f"durations below {_SHORTEST_MS} ms count as {_UNSET_MS} ms"])
                duration = _UNSET_MS
            time += duration / 1000


def find_sequence(path: Path) -> PictureSequence | None:
    """Return the numbered pictures that a path stands for; None when it stands for none.

    A folder stands for its largest series of pictures whose names differ in their last number alone; one
    picture of such a series for the series from there on; a name with `%04d` or `####` for all that fit it.
    """
    if path.is_dir():
        return _sort_series(path, _find_series(path), None)
    series = _find_series(path.parent) if path.parent.is_dir() else {}
    if path.is_file():
        key, number = _split_number(path.name)
        return _sort_series(path.parent, {key: series[key]}, number) if key in series else None
    pattern = _PATTERN.search(path.name)
    if pattern is None:
        return None
    before, after = path.name[: pattern.start()], path.name[pattern.end() :]
    key = (before.casefold(), after.casefold())
    return _sort_series(path.parent, {key: series[key]}, None) if key in series else None


def _find_series(folder: Path) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """Return numbers and names of a folder's numbered pictures by what their names share."""
    series: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in list_visible_files(folder):
        key, number = _split_number(name)
        if number is not None and Path(name).suffix.lower() in PICTURE_SUFFIXES:
            series.setdefault(key, []).append((number, name))
    return {key: sorted(names) for key, names in series.items() if len(names) > 1}


def _split_number(name: str) -> tuple[tuple[str, str], int | None]:
    path = Path(name)
    found = _NUMBERED.match(path.stem)
    if found is None:
        return (path.stem.casefold(), path.suffix.casefold()), None
    return (found["before"].casefold(), path.suffix.casefold()), int(found["number"])


def _sort_series(
    folder: Path, series: dict[tuple[str, str], list[tuple[int, str]]], first: int | None
) -> PictureSequence | None:
    if not series:
        return None
    key = max(series, key=lambda each: len(series[each]))
    chosen = [(number, name) for number, name in series[key] if first is None or number >= first]
    numbers = [number for number, _ in chosen]
    notes = [f"{len(chosen)} numbered pictures are its frames, {chosen[0][1]} to {chosen[-1][1]}"]
    missing = numbers[-1] - numbers[0] + 1 - len(set(numbers))
    if missing:
        notes.append(f"{missing} numbers between {numbers[0]} and {numbers[-1]} are missing")
    others = [names[0][1] for each, names in series.items() if each != key]
    notes += [f"the series that begins with {name} is not used" for name in others]
    return PictureSequence(folder, [find_file_inside(folder, name, str(folder)) for _, name in chosen], notes)


def read_sequence(sequence: PictureSequence, size: Size, selection: Selection) -> Video:
    """Read numbered pictures as frames of 16 per second, resized to cover `size` and cropped.

    Raises ValueError, with the file, when a picture cannot be read or has another size than those before it.
    """
    check_selection(sequence.folder, size, selection)
    notes = list(sequence.notes)
    sizes: list[tuple[int, int]] = []

    def convert(path: Path) -> np.ndarray:
        picture = read_picture(path)
        sizes.append(picture.rgb.size)
        if sizes[-1] != sizes[0]:
            raise ValueError(
                f"{path} is {sizes[-1][0]}x{sizes[-1][1]}, the frames before it are "
                f"{sizes[0][0]}x{sizes[0][1]}. Give frames of one size; single photographs are no clip."
            )
        return _crop(picture.rgb, size, picture.notes, notes)

    frames = ((None, path) for path in sequence.files)
    timing = measure_timing([], None, len(sequence.files))
    return build_video(sequence.folder, frames, convert, timing, selection, notes)


def _crop(rgb: Image.Image, size: Size, found: list[str], notes: list[str]) -> np.ndarray:
    box = cover_box(rgb.size, size)
    add_new_notes(notes, [*found, describe_crop(rgb.size, box), describe_enlargement(box, size)])
    return np.asarray(fit(rgb, size, box))
