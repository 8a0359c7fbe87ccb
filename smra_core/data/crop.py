"""Resize a picture until it covers the wanted size, then crop it at the center."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""(width, height) in pixels."""
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in source pixels."""


def check_target(size: Size) -> None:
    """Raise ValueError unless the wanted size has two positive sides."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"The wanted size is {size}; give (width, height) in pixels, such as (512, 512).")


def cover_box(source: Size, size: Size, pixel_aspect: float = 1.0) -> Box:
    """Return the largest centered box of the source that has the aspect ratio of `size`.

    The box spans the whole source in at least one direction. `pixel_aspect` is the width of a source pixel
    over its height; it is 1 except for anamorphic video.
    """
    width, height = source[0] * pixel_aspect, source[1]
    scale = min(width / size[0], height / size[1])
    box_width, box_height = size[0] * scale / pixel_aspect, size[1] * scale
    left, top = max(0.0, (source[0] - box_width) / 2), max(0.0, (source[1] - box_height) / 2)
    return left, top, min(source[0], left + box_width), min(source[1], top + box_height)


def crop_note(source: Size, box: Box) -> str | None:
    """Return a sentence about what the crop cuts off; None when that is less than one pixel."""
    width, height = round(box[2] - box[0]), round(box[3] - box[1])
    if (width, height) == source:
        return None
    return f"{source[0]}x{source[1]} is cropped to its central {width}x{height}"


def fit(image: Image.Image, size: Size, box: Box) -> Image.Image:
    """Resize the box to the wanted size, bilinearly and with antialiasing (as the authors' release does)."""
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB picture to `3 H W`, or a gray one to `1 H W`, float32 in [0, 1]."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).float() / 255
