"""Read picture and mask files (EXIF rotation, alpha, gray, 16-bit, palettes) as upright 8-bit pictures."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Pillow would also start other programs for some formats (EPS), which no data set needs. The MPO files of
# phones open as JPEG.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_SIXTEEN_BIT = 65535


class Picture(NamedTuple):
    """One picture, upright."""

    rgb: Image.Image
    """The picture in 8-bit RGB; transparent parts are white."""
    alpha_mask: Image.Image | None
    """Mask that is 0 where the picture is less than half opaque and 255 elsewhere; None when all is opaque.
    """
    notes: list[str]


def read_picture(path: Path) -> Picture:
    """Read a picture as 8-bit RGB, turned as its EXIF orientation says.

    Raises ValueError, with the path, when the file cannot be read.
    """
    image, notes = _open_upright(path)
    if not _is_transparent(image):
        return Picture(image.convert("RGB"), None, notes)
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    rgb = _paste_over(rgba, "white")
    if alpha.getextrema()[0] == 255:
        return Picture(rgb, None, notes)
    mask = alpha.point([0] * 128 + [255] * 128)
    return Picture(rgb, mask, [*notes, "its transparent parts lie over white"])


def read_mask(path: Path) -> tuple[Image.Image, list[str]]:
    """Read a mask as 0 (background) and 255 (subject), and notes about it.

    Pixels brighter than half of the mask's brightest value are subject, so that masks stored as 0 and 1 or in
    colors work too; transparent pixels are background. Raises ValueError, with the path, when no pixel is
    subject.
    """
    image, notes = _open_upright(path)
    rgb = _paste_over(image.convert("RGBA"), "black") if _is_transparent(image) else image.convert("RGB")
    brightness = np.asarray(rgb).max(axis=2)
    brightest = int(brightness.max())
    if brightest == 0:
        raise ValueError(
            f"The mask {path} is empty (all black). Paint the subject white, or remove the file."
        )
    if brightest < 128:
        notes.append(f"its brightest value is {brightest} of 255; values above half of that count as subject")
    return Image.fromarray(np.where(brightness > brightest / 2, 255, 0).astype(np.uint8)), notes


def _open_upright(path: Path) -> tuple[Image.Image, list[str]]:
    try:
        with Image.open(path, formats=_FORMATS) as file:
            count = getattr(file, "n_frames", 1)
            upright = ImageOps.exif_transpose(file)
            upright.load()
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ValueError(
            f"{path} cannot be read as a picture ({error}). Save it again as PNG or JPEG, or remove it."
        ) from error
    notes = [f"it holds {count} pictures, the first is used"] if count > 1 else []
    return _convert_to_8_bit(upright, path), notes


def _convert_to_8_bit(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise ValueError(f"{path} stores floating-point values. Save it as an 8-bit or 16-bit picture.")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > _SIXTEEN_BIT:
        raise ValueError(
            f"{path} stores values from {values.min()} to {values.max()}; 16 bits hold 0 to "
            f"{_SIXTEEN_BIT}. Save it as an 8-bit or 16-bit picture."
        )
    return Image.fromarray(np.rint(values / (_SIXTEEN_BIT / 255)).astype(np.uint8))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _paste_over(rgba: Image.Image, color: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", rgba.size, color), rgba).convert("RGB")
