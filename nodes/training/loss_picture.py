"""Loss curves as a picture on the node: a panel for each named loss, drawn with what the host brings."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...smra_core.data.crop import to_pixels
from ...smra_core.evaluation.loss_plot import smoothed
from ..host.images import as_image

WIDTH, HEIGHT, MARGIN = 420, 240, 34
_RAW, _SMOOTH, _INK, _FRAME = "#b7c7dc", "#1f4e8c", "#333333", "#cccccc"


def loss_picture(losses: Mapping[str, Sequence[float]]) -> Tensor:
    """IMAGE `1 H W 3`: panels side by side, the raw values pale behind the smoothed line."""
    panels = [_panel(name, values) for name, values in losses.items() if len(values)]
    picture = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "white")
    for place, panel in enumerate(panels):
        picture.paste(panel, (WIDTH * place, 0))
    return as_image(torch.stack([to_pixels(picture)]))


def _panel(name: str, values: Sequence[float]) -> Image.Image:
    panel = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default()
    low, high = min(values), max(values)
    right, bottom = WIDTH - 12, HEIGHT - MARGIN
    draw.rectangle((MARGIN, MARGIN, right, bottom), outline=_FRAME)
    draw.text((MARGIN, 10), f"{name}: {smoothed(values)[-1]:.4f}", fill=_INK, font=font)
    draw.text((MARGIN + 4, MARGIN + 2), f"{high:.3g}", fill=_INK, font=font)
    draw.text((MARGIN + 4, bottom - 14), f"{low:.3g}", fill=_INK, font=font)
    draw.text((right - 60, bottom + 8), f"step {len(values)}", fill=_INK, font=font)

    def point(index: int, value: float) -> tuple[float, float]:
        across = index / max(1, len(values) - 1)
        up = (value - low) / (high - low) if high > low else 0.5
        return MARGIN + across * (right - MARGIN), bottom - up * (bottom - MARGIN)

    for series, color, width in ((values, _RAW, 1), (smoothed(values), _SMOOTH, 2)):
        draw.line([point(i, value) for i, value in enumerate(series)], fill=color, width=width)
    return panel
