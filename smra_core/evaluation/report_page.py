"""A report as one HTML page beside its pictures and videos, without scripts or anything from the network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from ..storage.atomic_write import write_atomically

_STYLE = """
:root { color-scheme: light dark; --ink: #15181c; --faint: #5b636d; --paper: #fff; --line: #d9dee4;
        --best: #e3f0e4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa3ad; --paper: #16191d; --line: #343a41; --best: #23402a; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1080px; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, figcaption, td.note { color: var(--faint); } figure { margin: 0; } img { width: 100%; height: auto; }
img { border: 1px solid var(--line); background: #fff; } .videos { display: grid; gap: 1rem;
       grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); }
video { width: 100%; image-rendering: pixelated; background: #000; } strong { color: var(--ink); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } td.best { background: var(--best); font-weight: 600; }
.scroll { overflow-x: auto; } dt { font-weight: 600; } dd { margin: 0 0 .5rem; color: var(--faint); }
"""


class Picture(NamedTuple):
    """A picture of the report, under a heading of its own."""

    title: str
    file: str
    """Path of the picture, relative to the page."""
    caption: str


class Video(NamedTuple):
    """A video of the report, which plays in a loop."""

    title: str
    file: str
    """Path of the video, relative to the page."""
    note: str
    """Sentence that is shown under the title."""


def write_report(
    path: str | Path,
    title: str,
    introduction: Sequence[str],
    videos: Sequence[Video],
    metrics: Mapping[str, Mapping[str, float]],
    metric_help: Mapping[str, str],
    pictures: Sequence[Picture],
    files: Mapping[str, str],
) -> None:
    """Write the page; all texts are escaped.

    `metrics` holds the values as variant -> metric -> value; the largest value of each metric is highlighted.
    `metric_help` explains each metric, and `files` holds downloads as label -> path relative to the page.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(text)}</p>" for text in introduction),
        "<h2>Videos</h2>",
        f'<div class="videos">{"".join(map(_format_video, videos))}</div>',
        "<h2>Metrics</h2>",
        _format_table(metrics),
        "<dl>"
        + "".join(f"<dt>{escape(n)}</dt><dd>{escape(t)}</dd>" for n, t in metric_help.items())
        + "</dl>",
        *map(_format_picture, pictures),
        "<h2>Files</h2>",
        "<ul>" + "".join(_format_link(label, file) for label, file in files.items()) + "</ul>",
    ]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"{meta}<title>{escape(title)}</title>"
    page = (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>{"".join(parts)}'
    )
    with write_atomically(path) as draft:
        draft.write_text(f"{page}</body></html>\n", encoding="utf-8")


def _format_video(video: Video) -> str:
    return (
        f'<figure><video src="{escape(video.file)}" controls loop muted autoplay playsinline></video>'
        f"<figcaption><strong>{escape(video.title)}</strong><br>{escape(video.note)}</figcaption></figure>"
    )


def _format_picture(picture: Picture) -> str:
    title = escape(picture.title)
    return (
        f'<h2>{title}</h2><figure><img src="{escape(picture.file)}" alt="{title}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _format_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    best = {name: max(values.get(name, float("-inf")) for values in metrics.values()) for name in names}
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{escape(variant)}</td>"
        f"{''.join(_format_cell(values.get(name), best[name]) for name in names)}</tr>"
        for variant, values in metrics.items()
    )
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{rows}</table></div>'


def _format_cell(value: float | None, best: float) -> str:
    if value is None:
        return "<td>–</td>"
    mark = ' class="best"' if value == best else ""
    return f"<td{mark}>{value:.3f}</td>"


def _format_link(label: str, file: str) -> str:
    return f'<li><a href="{escape(file)}">{escape(label)}</a></li>'
