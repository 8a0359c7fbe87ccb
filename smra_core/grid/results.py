"""What a grid made, for people: metrics of each cell, a contact sheet, a video wall and the report page."""

import json
import logging
from functools import lru_cache, partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..data.motion_clip import read_motion_clip
from ..data.subject_set import SubjectImage, read_subject_set
from ..evaluation.cell_metrics import CellMeter, CellMetrics, Networks, describe_left_out
from ..evaluation.evaluate import References
from ..evaluation.grid_page import GridCell
from ..evaluation.grid_report import TOO_MANY, GridReport, write_report
from .plan import Cell, Plan, list_file_states, make_key

log = logging.getLogger("smrabooth")

_WALL_FPS = 16.0


def write_results(plan: Plan, networks: Networks | None) -> GridReport | None:
    """Write page, wall and sheet of the cells that are there; None if there is none.

    `networks` measure the metrics, which are left out without them.
    """
    made = [cell for cell in plan.cells if plan.is_ready(cell) and plan.find_video(cell).is_file()]
    if not made:
        return None
    metrics = _measure_cells(plan, made, networks) if networks else {}
    cells = [
        GridCell(
            _make_labels(cell),
            plan.find_video(cell),
            cell.prompt,
            metrics[number].values if number in metrics else {},
        )
        for number, cell in enumerate(made)
    ]
    note = f"{len(made)} of {len(plan.cells)} cells. Those of one prompt and seed begin with the same noise."
    introduction = [note, *describe_left_out(list(metrics.values()))]
    report = write_report(plan.file.out, plan.file.title, cells, introduction, _find_fps(cells[0].video))
    if report.sheet is None:
        log.info("%d cells. %s", len(cells), TOO_MANY)
    return report


def _make_labels(cell: Cell) -> dict[str, str]:
    return {
        "prompt": cell.prompt_name, "seed": str(cell.seed), "setting": cell.setting,
        "subject": cell.subject.name, "motion": cell.motion.name,
    }  # fmt: skip


def _find_fps(video: Path) -> float:
    about = video.with_suffix(".json")
    if not about.is_file():  # a grid was killed between the two files
        return _WALL_FPS
    return json.loads(about.read_text(encoding="utf-8"))["fps"]


def _measure_cells(plan: Plan, cells: list[Cell], networks: Networks) -> dict[int, CellMetrics]:
    """Measure each cell against the pictures and the clip that its LoRAs were trained on, where they were."""
    meter, metrics = CellMeter(networks), {}
    for number, cell in enumerate(tqdm(cells, desc="metrics", unit="cell")):
        sources = [source.path if source.is_trained else None for source in (cell.subject, cell.motion)]
        states = [path and [str(path), *list_file_states(path)] for path in sources]
        key = make_key({"sources": states, "prompt": cell.prompt})
        read = partial(_read_references, cell.prompt, *sources)
        metrics[number] = meter.measure(plan.find_video(cell), key, read)
    return metrics


def _read_references(prompt: str, subject: Path | None, motion: Path | None, frames: Tensor) -> References:
    """Read pictures and clip, at the size and length of a video's frames `F 3 H W`."""
    size = frames.shape[-1], frames.shape[-2]
    pictures = subject and [image.pixels for image in _read_pictures(subject, size)]
    return References(prompt, pictures, motion and _read_clip(motion, size, len(frames)))


@lru_cache(4)
def _read_pictures(folder: Path, size: tuple[int, int]) -> list[SubjectImage]:
    return read_subject_set(folder, size).images


@lru_cache(4)
def _read_clip(path: Path, size: tuple[int, int], frames: int) -> Tensor:
    return read_motion_clip(path, size, frames).frames
