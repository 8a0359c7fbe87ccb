"""Check batches of pictures and masks that come as tensors, before anything is trained on them."""

import torch
from torch import Tensor

_LOWEST, _HIGHEST = -0.25, 1.25
"""Limits of values that count as [0, 1]; sharpening and upscaling overshoot a little, and that is clamped."""
_DARKEST = 1 / 255
"""Brightest value of a picture that counts as black all over."""


def split_alpha(images: Tensor, what: str = "picture") -> tuple[Tensor, Tensor | None, list[str]]:
    """Return pictures `B H W 3`, their alpha `B H W` or None, and notes, of a batch `B H W 3` or `B H W 4`.

    Transparent parts become white, as those of picture files do. Alpha is None where all is opaque. Raises
    ValueError, naming the first `what` concerned, for another shape, values that are not numbers, not in [0,
    1], and for pictures without anything opaque.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or 0 in images.shape:
        channels = f"{images.shape[-1]} channels" if images.ndim == 4 else f"the shape {tuple(images.shape)}"
        raise ValueError(
            f"The {what}s have {channels}; needed are pictures with 3 (RGB) or 4 (RGBA), as Load Image "
            "gives. A mask or a depth map is no picture: connect the picture itself."
        )
    _check_values(images, what, "pictures")
    if images.shape[-1] == 3:
        return images, None, []
    alpha = images[..., 3].clamp(0, 1)
    if (alpha == 1).all():
        return images[..., :3], None, [f"the {what}s' fourth channel is opaque all over and not used"]
    for number, each in enumerate(alpha, 1):
        if each.max() < 0.5:
            raise ValueError(f"{what.capitalize()} {number} is transparent all over. Leave it out.")
    rgb = images[..., :3] * alpha[..., None] + (1 - alpha[..., None])
    return rgb, alpha, [f"the {what}s' transparent parts lie over white"]


def check_none_is_black(images: Tensor) -> None:
    """Raise ValueError, naming the first, when a picture of a batch `B H W C` is black all over."""
    for number, picture in enumerate(images, 1):
        if picture.max() <= _DARKEST:
            raise ValueError(
                f"Picture {number} of {len(images)} is black all over, so there is nothing to learn. Look "
                "at what is connected, or leave that picture out."
            )


def check_clip(frames: Tensor) -> list[str]:
    """Raise ValueError when a clip's frames `F H W C` are all black; return a note when nothing moves."""
    if frames.max() <= _DARKEST:
        raise ValueError(f"The clip's {len(frames)} frames are all black. Look at what is connected.")
    if torch.equal(frames[1:], frames[:1].expand_as(frames[1:])):
        return [f"the clip's {len(frames)} frames are all the same, so that there is no motion to learn"]
    return []


def check_mask_values(masks: Tensor) -> None:
    """Raise ValueError unless masks hold numbers in [0, 1]."""
    _check_values(masks, "mask", "masks")


def _check_values(batch: Tensor, what: str, kind: str) -> None:
    for number, each in enumerate(batch, 1):
        low, high = (value.item() for value in torch.aminmax(each.float()))
        if not (low > float("-inf") and high < float("inf")):  # also when NaN
            raise ValueError(
                f"{what.capitalize()} {number} of {len(batch)} holds values that are no numbers (NaN or "
                "infinite). A node before it has failed; often a VAE in float16 has."
            )
        if low < _LOWEST or high > _HIGHEST:
            scale = "divide by 255" if high > 2 else "map them to [0, 1]: (x + 1) / 2 of values in [-1, 1]"
            raise ValueError(
                f"{what.capitalize()} {number} of {len(batch)} holds values from {low:g} to {high:g}; "
                f"{kind} have 0 to 1. Before they come here, {scale}."
            )
