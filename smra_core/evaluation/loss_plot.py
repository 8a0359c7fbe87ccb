"""Loss curves of training runs as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..storage.atomic_write import atomic_write
from ..training.run_folder import read_losses

SMOOTHING = 0.9
"""Weight of the past in the drawn line; the raw values are drawn faintly behind it."""


def smoothed(values: Sequence[float], past: float = SMOOTHING) -> list[float]:
    """Running mean that forgets; the start is corrected, so that the first value is its own mean."""
    result, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = past * mean + (1 - past) * value, past * weight + (1 - past)
        result.append(mean / weight)
    return result


def draw_losses(runs: Mapping[str, Path], path: str | Path) -> None:
    """A PNG with a row per run (title to losses.csv) and a panel per named loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {title: read_losses(file) for title, file in runs.items()}
    names = {
        title: [name for name in columns if name not in ("step", "total")]
        for title, columns in curves.items()
    }
    widest = max(len(panel) for panel in names.values())
    figure = Figure(figsize=(5.2 * widest, 3.1 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(runs), widest, squeeze=False)
    for row, (title, columns) in zip(grid, curves.items(), strict=True):
        for panel, name in zip(row, names[title], strict=False):
            panel.plot(columns["step"], columns[name], color="#9db4d0", linewidth=0.8)
            panel.plot(columns["step"], smoothed(columns[name]), color="#1f4e8c", linewidth=1.8)
            panel.set_title(f"{title}: {name}", fontsize=11)
            panel.set_xlabel("step")
            panel.grid(alpha=0.25)
        for panel in row[len(names[title]) :]:
            panel.set_visible(False)
    with atomic_write(path) as draft:
        figure.savefig(draft, format="png", dpi=110)
