"""Held-out subjects and motions as files, in the layout of the authors' data."""

import csv
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..data.video import write_video
from ..wan.latents import to_uint8
from .world.scenes import Scene, render
from .world.sprite import Painted

FPS = 8
SUBJECT, MOTION = "ball", "zigzag"
"""The subject and the motion of the demo."""
REFERENCES = {
    "zigzag": Scene("square", "red", "plain", "navy", "zigzag"),
    "hook": Scene("triangle", "cyan", "plain", "black", "hook"),
}
"""The clip that each motion is learned from. Its sprite differs from every held-out subject in shape and
color.
"""
SUBJECT_PLACES = (("black", (22.0, 40.0)), ("gray", (40.0, 24.0)), ("navy", (32.0, 32.0)))
"""Background and center of each reference picture."""


def render_subject(subject: str = SUBJECT) -> list[tuple[Scene, Painted]]:
    """Render a held-out subject at each of its places, one frame each; return scenes and pictures."""
    places = [Scene(subject=subject, background=name, center=center) for name, center in SUBJECT_PLACES]
    return [(scene, render(scene, frames=1)) for scene in places]


def render_motion(motion: str = MOTION) -> Tensor:
    """Render the clip `F 3 H W` in [0, 1] that shows a held-out motion."""
    return render(REFERENCES[motion]).frames


def write_subject(folder: Path, subject: str = SUBJECT) -> Path:
    """Write pictures, masks and metadata.csv of a held-out subject to a folder; return it."""
    rows = [["video", "mask", "prompt"]]
    for number, (scene, painted) in enumerate(render_subject(subject)):
        names = [f"{kind}/{number:02}.png" for kind in ("images", "masks")]
        for name, content in zip(names, (painted.frames[0], painted.mask_px), strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _convert_to_image(content).save(folder / name)
        rows.append([*names, scene.picture_prompt])
    _write_table(folder / "metadata.csv", rows)
    return folder


def write_motion(folder: Path, motion: str = MOTION) -> Path:
    """Write the clip of a held-out motion and its metadata.csv to a folder; return it.

    The clip stays if it is there: the encoder does not write the same file twice, and training on another
    file is another run, which could neither be resumed nor be shared by two variants of the bench.
    """
    table = [["video", "prompt"], [f"{folder.name}/00.mp4", REFERENCES[motion].prompt]]
    if _read_table(folder / "metadata.csv") != table:
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / "00.mp4", render_motion(motion), FPS)
        _write_table(folder / "metadata.csv", table)
    return folder


def _convert_to_image(content: Tensor) -> Image.Image:
    """Convert pixels `3 H W` or `1 H W` in [0, 1] to an 8-bit picture."""
    values = to_uint8(content).permute(1, 2, 0).numpy()
    return Image.fromarray(values if values.shape[-1] == 3 else values[..., 0])


def _write_table(path: Path, rows: list[list[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _read_table(path: Path) -> list[list[str]]:
    """Read the rows of a table; none where there is no file."""
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
