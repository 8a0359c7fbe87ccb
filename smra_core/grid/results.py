"""What a grid made, for people: metrics of each cell, a contact sheet, a video wall and the report page."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..data.motion_clip import read_motion_clip
from ..data.subject_set import read_subject_set
from ..data.video import read_video, read_video_size
from ..evaluation.grid_page import GridCell, write_grid_page
from ..evaluation.video_scorer import METRIC_HELP, VideoScorer
from ..evaluation.video_wall import MOST_FRAMES, read_cell, write_grid_sheet, write_video_wall
from ..storage.atomic_write import write_atomically
from .plan import Cell, Plan, make_key

log = logging.getLogger("smrabooth")

MOST_ON_A_WALL = 64
"""Cells up to which there is a wall and a sheet: of more, nobody sees anything."""
_WALL_FPS = 16.0


class GridResults(NamedTuple):
    """Files of a grid, for people."""

    page: Path
    wall: Path | None
    sheet: Path | None


def write_results(plan: Plan, encoders: tuple[Path, Path] | None) -> GridResults | None:
    """Write page, wall and sheet of the cells that are there; None if there is none.

    `encoders` are the files of DINOv2 and SEA-RAFT for the metrics, which are left out without them.
    """
    made = [cell for cell in plan.cells if plan.is_ready(cell) and plan.find_video(cell).is_file()]
    if not made:
        return None
    metrics = _measure_cells(plan, made, encoders) if encoders else {}
    cells = [
        GridCell(_make_labels(cell), plan.find_video(cell), cell.prompt, metrics.get(number, {}))
        for number, cell in enumerate(made)
    ]
    out = plan.file.out
    introduction = [f"{len(made)} of {len(plan.cells)} cells. Those of one prompt and seed begin with the "
                    "same noise."]  # fmt: skip
    page, wall, sheet = out / "report.html", out / "wall.mp4", out / "sheet.png"
    write_grid_page(page, plan.file.title, cells, ("prompt", "seed"), introduction, METRIC_HELP)
    if len(cells) > MOST_ON_A_WALL:
        log.info("%d cells are too many for a wall and a sheet; the page has them.", len(cells))
        return GridResults(page, None, None)
    labels, videos = [cell.labels for cell in cells], [read_cell(cell.video) for cell in cells]
    write_grid_sheet(labels, videos, sheet, plan.file.title)
    write_video_wall(labels, videos, wall, _find_fps(cells[0].video), plan.file.title)
    return GridResults(page, wall, sheet)


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


def _measure_cells(plan: Plan, cells: list[Cell], encoders: tuple[Path, Path]) -> dict[int, dict[str, float]]:
    """Measure each cell that has both references, once: values are kept beside its video."""
    metrics, scorer, reference = {}, None, None
    for number, cell in enumerate(tqdm(cells, desc="metrics", unit="cell")):
        sources = cell.subject, cell.motion
        if not all(source.is_trained for source in sources):
            continue
        video = plan.find_video(cell)
        key = make_key(
            {"encoders": [path.name for path in encoders], "sources": [str(s.path) for s in sources]}
        )
        path = video.with_name(f"{video.stem}.{key}.metrics.json")
        if not path.is_file():
            scorer = scorer or VideoScorer(*encoders)
            if reference != sources:
                _set_references(scorer, cell, video)
                reference = sources
            frames = read_video(video, read_video_size(video), MOST_FRAMES).frames
            with write_atomically(path) as draft:
                draft.write_text(json.dumps(scorer.score(frames[None])), encoding="utf-8")
        metrics[number] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def _set_references(scorer: VideoScorer, cell: Cell, video: Path) -> None:
    """Take the pictures and the clip of the trainings as the references, at the video's size."""
    size = read_video_size(video)
    frames = len(read_video(video, size, MOST_FRAMES).frames)
    assert cell.subject.path is not None and cell.motion.path is not None
    images = read_subject_set(cell.subject.path, size).images
    scorer.set_references(images, read_motion_clip(cell.motion.path, size, frames).frames)
