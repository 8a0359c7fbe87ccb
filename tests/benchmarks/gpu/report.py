"""The table and the JSON file of a run."""

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks.gpu.meter import GB, Row
from tests.benchmarks.gpu.sizes import Sizes

HEAD = (
    "case",
    "s",
    "against the base",
    "an hour",
    "told GB",
    "peak GB",
    "above weights GB",
    "reserved GB",
    "context GB",
    "",
)


def describe_machine(device: torch.device, commit: str | None) -> dict:
    """Return the card, its memory, and the versions of what ran on it."""
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or find_commit(),
    }
    if device.type != "cuda":
        return {"device": str(device), **machine}
    card = torch.cuda.get_device_properties(device)
    return {
        "device": card.name,
        "memory": card.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **machine,
    }


def find_commit() -> str:
    """Return the commit of this folder, or an empty text outside of git."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def render_tables(rows: Sequence[Row]) -> str:
    """Return a table for each part, as Markdown."""
    parts = dict.fromkeys(row.part for row in rows)
    return "\n\n".join(_render_part(part, [row for row in rows if row.part == part]) for part in parts)


def _render_part(part: str, rows: Sequence[Row]) -> str:
    lines = [f"| {part} | {' | '.join(HEAD[1:])} |", "|---" * len(HEAD) + "|"]
    base = {row.case: row.median for row in rows}
    lines += [_render_row(row, base.get(row.base)) for row in rows]
    return "\n".join(lines)


def _render_row(row: Row, base: float | None) -> str:
    seconds = ratio = hourly = ""
    if row.median is not None:
        seconds = f"{row.median:.3f} ({min(row.seconds):.3f} to {max(row.seconds):.3f})"
        hourly = f"{3600 * row.samples / row.median:.0f}"
        ratio = f"{row.median / base:.3f}" if base else ""
    told = f"{sum(row.told.values()) / GB:.2f}" if row.told else ""
    memory = [f"{bytes_ / GB:.2f}" for bytes_ in (row.peak, row.peak - row.held, row.reserved, row.outside)]
    note = row.note + (f" {row.kept} bytes kept" if row.kept else "")
    return "| " + " | ".join([row.case, seconds, ratio, hourly, told, *memory, note.strip()]) + " |"


def describe_sizes(sizes: Sizes) -> str:
    """Return a sentence on models and inputs."""
    spec, motion, subject, video = sizes.spec, sizes.motion, sizes.subject, sizes.sampling
    return (
        f"{spec.name}: {spec.blocks} blocks of width {spec.dim}, {sizes.dtype}; VAE of width "
        f"{sizes.vae_width}; {sizes.flow.name}; motion {motion.width}x{motion.height}, "
        f"{motion.frames} frames, rank {motion.rank}, window {motion.window}, context {motion.context}; "
        f"subject {subject.width}x{subject.height}, rank {subject.rank}; "
        f"sampling {video.width}x{video.height}, {video.frames} frames, one evaluation without "
        "guidance. Random weights."
    )


def write_report(path: Path, machine: dict, rows: Sequence[Row], notes: dict) -> None:
    """Write everything as JSON."""
    content = {"machine": machine, **notes, "rows": [row.to_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
