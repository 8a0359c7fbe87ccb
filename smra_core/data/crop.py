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


def keep_shape(source: Size, most: Size, multiple: int) -> Size:
    """Return the size at which a source keeps its own shape: at most as many pixels as `most` has, never
    enlarged, with sides that are multiples of `multiple`, rounded down.
    """
    scale = min(1.0, (most[0] * most[1] / (source[0] * source[1])) ** 0.5)
    width, height = (max(multiple, int(side * scale + 1e-6) // multiple * multiple) for side in source)
    return width, height


def describe_crop(source: Size, box: Box) -> str | None:
    """Return a sentence about what the crop cuts off; None when that is less than one pixel."""
    width, height = round(box[2] - box[0]), round(box[3] - box[1])
    if (width, height) == source:
        return None
    return f"{source[0]}x{source[1]} is cropped to its central {width}x{height}"


def has_same_shape(size: Size, other: Size) -> bool:
    """Return whether two sizes have the same aspect ratio, to 1 % or one pixel."""
    expected_height = size[0] * other[1] / other[0]
    return abs(size[1] - expected_height) <= max(1, 0.01 * expected_height)


def describe_enlargement(box: Box, size: Size) -> str | None:
    """Return a sentence when the box is smaller than the wanted size in both directions; otherwise None."""
    factor = min(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
    if factor <= 1.005:
        return None
    return (
        f"{round(box[2] - box[0])}x{round(box[3] - box[1])} is enlarged {factor:.3g} times to "
        f"{size[0]}x{size[1]}, which adds no detail"
    )


def fit(image: Image.Image, size: Size, box: Box) -> Image.Image:
    """Resize the box to the wanted size, bilinear with antialiasing (as the authors' release does)."""
    # PIL, not kornia. Root mean square error, in 8-bit levels, against the same triangle filter in float64,
    # for a chirp, a 3-pixel checker and a slanted edge: 1920x1080 to 576x320 PIL 0.33, 0.32, 0.02,
    # kornia.resize with antialias 7.9, 13.9, 0.47, kornia.crop_by_boxes after such a resize 7.5, 13.4, 0.47;
    # 781x781 to 512x512 PIL 0.35, 0.30, 0.02, kornia 30.2, 33.0, 1.06. PIL's error is its rounding to 8 bits.
    # Kornia blurs with a Gaussian and then samples, which aliases at small factors. Against the exact mean
    # over each target pixel kornia is nearer at a factor of 3.3 (chirp 8.2, PIL 13.2) and farther at 1.5
    # (22.3, PIL 10.6). Enlarging 333x251 to 512x512 the two differ by PIL's rounding alone (0.37), but
    # kornia.resize takes no fractional box: 400x300 to 832x480 PIL 0.37, kornia.resize 19.2. (kornia 0.9.0)
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB picture to `3 H W`, or a gray one to `1 H W`, float32 in [0, 1]."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).float() / 255
