"""Read picture and mask files (EXIF rotation, alpha, gray, 16-bit, palettes, HEIC) as upright pictures of
8 bits.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin

PICTURE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
# Pillow would also start other programs for some formats (EPS), which no data set needs. The MPO files of
# phones open as JPEG.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF")
_SIXTEEN_BIT = 65535
_ORIENTATION_TAG = 0x0112
_MOST_PIXELS = 2 * 89_478_485
"""Pixels above which Pillow refuses a file: as RGB these are 537 MB."""
_DRAFT_SIDE = 4096
"""Pixels that a very large JPEG's shorter side keeps at least when it is decoded at a fraction of its size.
"""
_OTHER_KINDS = {
    "HEIC": (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1"),
    "AVIF": (b"ftypavif", b"ftypavis"),
    "JPEG XL": (b"JXL ", b"\xff\x0a"),
    "a Photoshop document": (b"8BPS",),
    "a GIF": (b"GIF8",),
    "a PDF": (b"%PDF",),
    "an SVG drawing": (b"<svg",),
    "a web page, perhaps of a failed download": (b"<html", b"<!DOCTYPE"),
    "a pointer of Git LFS, not the file itself": (b"version https://",),
    "a video": (b"ftypisom", b"ftypmp4", b"ftypqt", b"\x1a\x45\xdf\xa3"),
}
"""What files are that Pillow does not read, with their first bytes, or those from the fifth on."""


class Picture(NamedTuple):
    """One picture, upright."""

    rgb: Image.Image
    """The picture in 8-bit RGB; transparent parts are white."""
    alpha_mask: Image.Image | None
    """Mask that is 0 where the picture is less than half opaque and 255 elsewhere; None when all is opaque.
    """
    notes: list[str]
    orientation: int = 1
    """EXIF orientation that was applied, 1 to 8; 1 leaves the picture as it is stored."""


class _OpenedFile(NamedTuple):
    image: Image.Image
    """The picture, upright."""
    orientation: int
    notes: list[str]


def read_picture(path: Path) -> Picture:
    """Read a picture as 8-bit RGB, turned as its EXIF orientation says.

    A JPEG of more than 178 megapixels is decoded at a fraction of its size, which the notes tell. HEIC is
    read where pillow-heif is installed. Raises ValueError, with the path, when the file cannot be read.
    """
    image, orientation, notes = _open_upright(path)
    rgb, alpha_mask, alpha_notes = convert_to_rgb(image)
    return Picture(rgb, alpha_mask, notes + alpha_notes, orientation)


def convert_to_rgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None, list[str]]:
    """Return a picture in RGB with white under its transparent parts, its alpha as a mask, and notes.

    The mask is as in `Picture.alpha_mask`.
    """
    if not _is_transparent(image):
        return image.convert("RGB"), None, []
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    rgb = _paste_over(rgba, "white")
    if alpha.getextrema()[0] == 255:
        return rgb, None, []
    mask = alpha.point([0] * 128 + [255] * 128)
    return rgb, mask, ["its transparent parts lie over white"]


def rotate_as_stored(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture that is laid out as stored upright, by the EXIF orientation (1 to 8) of another file."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_mask(path: Path) -> tuple[Image.Image, list[str]]:
    """Read a mask as 0 (background) and 255 (subject), and notes about it.

    Pixels brighter than half of the mask's brightest value are subject, so that masks stored as 0 and 1 or in
    colors work too; transparent pixels are background. In a mask that is black all over with transparent
    parts, as paint programs store a selection, the opaque parts are subject. Raises ValueError, with the
    path, when no pixel is subject.
    """
    image, _, notes = _open_upright(path)
    rgb = _paste_over(image.convert("RGBA"), "black") if _is_transparent(image) else image.convert("RGB")
    brightness = np.asarray(rgb).max(axis=2)
    brightest = int(brightness.max())
    if brightest == 0 and _is_transparent(image):
        _, alpha_mask, _ = convert_to_rgb(image)
        if alpha_mask is not None and alpha_mask.getbbox():
            return alpha_mask, [*notes, "it is black all over; its opaque parts count as subject"]
    if brightest == 0:
        raise ValueError(
            f"The mask {path} is empty (all black). Paint the subject white, or remove the file."
        )
    if brightest < 128:
        notes.append(f"its brightest value is {brightest} of 255; values above half of that count as subject")
    return Image.fromarray(np.where(brightness > brightest / 2, 255, 0).astype(np.uint8)), notes


def _open_upright(path: Path) -> _OpenedFile:
    _register_heif()
    try:
        with _open_file(path) as file:
            count = getattr(file, "n_frames", 1)
            stored = file.size
            if stored[0] * stored[1] > _MOST_PIXELS:
                file.draft(None, (min(_DRAFT_SIDE, stored[0]), min(_DRAFT_SIDE, stored[1])))
            notes = _describe_draft(stored, file.size)
            orientation = file.getexif().get(_ORIENTATION_TAG, 1)
            upright = ImageOps.exif_transpose(file)
            upright.load()
    except Image.DecompressionBombError as error:
        raise ValueError(_explain_size(path, error)) from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ValueError(_explain_failure(path, error)) from error
    notes += [f"it holds {count} pictures, the first is used"] if count > 1 else []
    orientation = orientation if orientation in _TURNS else 1
    return _OpenedFile(_convert_to_8_bit(upright, path), orientation, notes)


def _register_heif() -> None:
    """Let Pillow open HEIC files where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()


def _open_file(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on of an attack by a small file; phones make such photos.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=[name for name in _FORMATS if _can_open(name)])
    except Image.DecompressionBombError:
        with open(path, "rb") as content:
            if content.read(3) != b"\xff\xd8\xff":
                raise
        # This class reads the header alone and lets a fraction be chosen before decoding.
        return JpegImagePlugin.JpegImageFile(path)


def _can_open(name: str) -> bool:
    Image.init()
    return name in Image.OPEN


def _explain_size(path: Path, error: Exception) -> str:
    numbers = [int(word) for word in str(error).replace("(", " ").split() if word.isdigit()]
    size = f"{numbers[0] / 1e6:.1f} megapixels" if numbers else "too many pixels"
    return f"{path} has {size}. Make it smaller than {_MOST_PIXELS // 1_000_000} megapixels."


def _describe_draft(stored: tuple[int, int], drafted: tuple[int, int]) -> list[str]:
    if drafted == stored:
        return []
    megapixels = stored[0] * stored[1] / 1e6
    return [f"its {megapixels:.1f} megapixels are read at 1/{round(stored[0] / drafted[0])} of their size"]


def _explain_failure(path: Path, error: Exception) -> str:
    kind = _identify_kind(path)
    if kind == "HEIC":
        return (
            f"{path} is HEIC, whatever its name says, and is not read without pillow-heif. Save it as PNG or "
            "JPEG, or install that package: pip install pillow-heif."
        )
    if kind:
        return f"{path} is {kind}, not a picture that can be read. Save it as PNG or JPEG, or remove it."
    return f"{path} cannot be read as a picture ({error}). Save it again as PNG or JPEG, or remove it."


def _identify_kind(path: Path) -> str | None:
    """Return what a file is that Pillow does not read, by its first bytes; None when they say nothing."""
    with open(path, "rb") as content:
        head = content.read(16)
    return next(
        (
            kind
            for kind, starts in _OTHER_KINDS.items()
            if head.startswith(starts) or head[4:].startswith(starts)
        ),
        None,
    )


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
