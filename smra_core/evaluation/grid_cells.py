"""Cells of a grid that is sampled in a graph: which there are, and the folder that holds them."""

import fnmatch
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..data.video import write_video
from ..storage.atomic_write import write_atomically
from .cell_metrics import CellMetrics, describe_left_out
from .grid_page import GridCell
from .grid_report import TOO_MANY, GridReport, write_report

NO_LORA, TRAINED_HERE = "None", "trained here"
"""Names of no LoRA, and of one that comes from a training node."""


class GridLora(NamedTuple):
    """A LoRA on an axis of a grid."""

    name: str
    """Name of its file, or NO_LORA."""
    words: str = ""
    """Text that stands for it in the prompt."""


class CellValues(NamedTuple):
    """Values of one cell on every axis."""

    subject: GridLora
    motion: GridLora
    subject_strength: float
    motion_strength: float
    t_point: float | None
    """Noise level of T_point, or None for that of the schedule."""
    seed: int

    def make_labels(self) -> dict[str, str]:
        """Return the names of the values by axis."""
        t_point = {} if self.t_point is None else {"T_point": f"{self.t_point:g}"}
        return {
            "subject": _strip_ending(self.subject.name), "motion": _strip_ending(self.motion.name),
            "subject strength": f"{self.subject_strength:g}", "motion strength": f"{self.motion_strength:g}",
            **t_point, "seed": str(self.seed),
        }  # fmt: skip


@dataclass(frozen=True)
class GridAxes:
    """Values of each axis of a grid."""

    subjects: Sequence[GridLora]
    motions: Sequence[GridLora]
    subject_strengths: Sequence[float]
    motion_strengths: Sequence[float]
    t_points: Sequence[float | None]
    seeds: Sequence[int]

    def list_cells(self) -> Iterator[CellValues]:
        """List all combinations, seed by seed, so that an unfinished grid has whole seeds."""
        loras, strengths = (self.subjects, self.motions), (self.subject_strengths, self.motion_strengths)
        for seed, *rest in itertools.product(self.seeds, *loras, *strengths, self.t_points):
            yield CellValues(*rest, seed)


def _strip_ending(name: str) -> str:
    return Path(name).stem if name.endswith(".safetensors") else name


def parse_loras(text: str, known: Sequence[str]) -> list[GridLora]:
    """Return the LoRAs of a list with one file on each line, and the words for the prompt behind a bar.

    A line may be None, for no LoRA, or a pattern with * such as dog_*.safetensors, which stands for all files
    that fit, such as those kept on the way. Raises ValueError for a file that is not among the known ones.
    """
    loras = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, words = (part.strip() for part in line.partition("|"))
        if name == NO_LORA:
            loras.append(GridLora(NO_LORA, words))
            continue
        files = [file for file in known if fnmatch.fnmatchcase(file, name)] if "*" in name else [name]
        if not files or not set(files) <= set(known):
            raise ValueError(
                f"{name!r} is not in models/loras. Write the name as the loaders list it, or None."
            )
        loras += [GridLora(file, words) for file in sorted(files, key=_split_numbers)]
    return loras


def _split_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts dog_50 before dog_100."""
    parts = (("".join(run), is_number) for is_number, run in itertools.groupby(name, str.isdecimal))
    return [(int(part), "") if is_number else (-1, part) for part, is_number in parts]


def parse_numbers(text: str, name: str, whole: bool = False) -> list:
    """Return the numbers of a list with commas or line breaks; `whole` for whole ones.

    Raises ValueError for anything else; `name` says where.
    """
    try:
        values = [(int if whole else float)(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"{name} must be numbers with commas between them, and is {text!r}.") from error
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{name} must be finite, and is {text!r}.")
    return list(dict.fromkeys(values))


def fill_prompt(template: str, cell: CellValues) -> str:
    """Return the prompt of a cell, with the words of its LoRAs in place of {subject} and {motion}.

    A file without words is called by its name. Raises ValueError for no words of NO_LORA and TRAINED_HERE.
    """
    for purpose, lora in (("subject", cell.subject), ("motion", cell.motion)):
        place = f"{{{purpose}}}"
        if place in template and not lora.words and lora.name in (NO_LORA, TRAINED_HERE):
            raise ValueError(
                f"The prompt holds {place}, but the line {lora.name!r} of {purpose}_loras has no words. "
                f"Write them behind a bar: {lora.name} | a dog."
            )
        template = template.replace(place, lora.words or _strip_ending(lora.name))
    return template


class GridFolder(NamedTuple):
    """Folder with the cells of a grid."""

    path: Path

    def find_video(self, key: str) -> Path:
        """Return the path of a cell's video."""
        return self.path / "cells" / f"{key}.mp4"

    def save_cell(self, key: str, frames: Tensor, fps: float, labels: Mapping[str, str], note: str) -> Path:
        """Write a cell's video, from frames `F 3 H W` in [0, 1], and after it what it shows."""
        video = self.find_video(key)
        write_video(video, frames[..., : frames.shape[-2] // 2 * 2, : frames.shape[-1] // 2 * 2], fps)
        with write_atomically(video.with_suffix(".json")) as draft:
            about = {"labels": dict(labels), "note": note, "fps": fps}
            draft.write_text(json.dumps(about, indent=1), encoding="utf-8")
        return video

    def is_there(self, key: str) -> bool:
        """Return whether a cell is whole."""
        video = self.find_video(key)
        return video.is_file() and video.with_suffix(".json").is_file()

    def list_keys(self) -> list[str]:
        """Return the keys of all cells that are whole, the oldest first."""
        files = sorted(self.path.glob("cells/*.json"), key=lambda file: file.stat().st_mtime_ns)
        return [file.stem for file in files if self.is_there(file.stem)]


def write_grid_report(
    folder: GridFolder,
    keys: Sequence[str],
    title: str,
    measure: Callable[[Path, str], CellMetrics] | None = None,
) -> tuple[GridReport, str]:
    """Write the report page, the wall and the sheet of these cells; return them and a sentence.

    `measure` returns the metrics of a video and its prompt. Cells that are not there are left out, and the
    sentence says how many. Raises ValueError if none is there.
    """
    there = [key for key in keys if folder.is_there(key)]
    if not there:
        raise ValueError(f"{folder.path} holds no cell of this grid yet. Save some first.")
    abouts = [json.loads(folder.find_video(key).with_suffix(".json").read_text("utf-8")) for key in there]
    videos = [folder.find_video(key) for key in there]
    metrics = [] if measure is None else [measure(v, a["note"]) for v, a in zip(videos, abouts, strict=True)]
    values = [one.values for one in metrics] or [{}] * len(videos)
    cells = [
        GridCell(about["labels"], video, about["note"], measured)
        for video, about, measured in zip(videos, abouts, values, strict=True)
    ]
    note = f"{len(there)} of {len(keys)} cells."
    introduction = [note, *describe_left_out(metrics)]
    report = write_report(folder.path, title, cells, introduction, abouts[0]["fps"])
    written = "Page, video wall and sheet are" if report.sheet else f"{TOO_MANY} It is"
    return report, f"{note} {written} in {folder.path}"
