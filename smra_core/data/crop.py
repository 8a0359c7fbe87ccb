"""How a picture of any size gets the wanted one: scaled until it covers it, then cropped at the center."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""(width, height) in pixels."""
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in source pixels."""


def check_target(size: Size) -> None:
    """ValueError unless the wanted size has two positive sides."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"The wanted size is {size}; give (width, height) in pixels, such as (512, 512).")


def cover_box(source: Size, size: Size, pixel_aspect: float = 1.0) -> Box:
    """The centerd part of the source that has the wanted shape; the whole of it on at least one side.

    `pixel_aspect` is the width of a source pixel over its height: 1 but for anamorphic video.
    """
    width, height = source[0] * pixel_aspect, source[1]
    scale = min(width / size[0], height / size[1])
    kept_width, kept_height = size[0] * scale / pixel_aspect, size[1] * scale
    left, top = max(0.0, (source[0] - kept_width) / 2), max(0.0, (source[1] - kept_height) / 2)
    return left, top, min(source[0], left + kept_width), min(source[1], top + kept_height)


def crop_note(source: Size, box: Box) -> str | None:
    """What the crop leaves out, in words; None when that is less than one pixel."""
    width, height = round(box[2] - box[0]), round(box[3] - box[1])
    if (width, height) == source:
        return None
    return f"{source[0]}x{source[1]} is cropped to its central {width}x{height}"


def fit(image: Image.Image, size: Size, box: Box) -> Image.Image:
    """The box at the wanted size: bilinear, averaging when it shrinks, as the authors' release resizes."""
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB picture as `3 H W` or a gray one as `1 H W`, float32 in [0, 1]."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).float() / 255


def to_uint8(pixels: Tensor) -> Tensor:
    """Return pixels `... H W`, float in [0, 1], as uint8 on the same device: clamped, times 255, rounded."""
    return (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
