"""Bring HDR video frames (PQ or HLG) to the 8-bit sRGB of ordinary pictures.

Only what a frame declares counts: its transfer (PQ is SMPTE ST 2084, HLG is ARIB STD-B67) and its primaries.
The curve is the identity up to 3/4 of reference white and then falls off smoothly, so that faces and surfaces
keep their brightness and only highlights are compressed.
"""

import numpy as np
from PIL import Image

PQ, HLG = 16, 18
"""Transfer characteristics in FFmpeg's and H.273's numbers."""
_BT2020 = 9
_REFERENCE_WHITE = 203.0
"""Candelas per square meter of white paper in HDR video (ITU-R BT.2408)."""
_HLG_PEAK = 1000.0
_KNEE = 0.75
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear BT.2020 to linear BT.709 (ITU-R BT.2087)."""


def find_hdr_transfer(frame, stream) -> int | None:
    """Return PQ or HLG where a decoded frame or its stream declares it; None for ordinary video."""
    declared = (getattr(frame, "color_trc", None), getattr(stream.codec_context, "color_trc", None))
    return next((int(transfer) for transfer in declared if transfer in (PQ, HLG)), None)


def name_transfer(transfer: int) -> str:
    return "PQ" if transfer == PQ else "HLG"


def map_frame_tones(frame, transfer: int) -> Image.Image:
    """Convert a decoded PyAV frame of this transfer to an 8-bit sRGB picture."""
    code_values = frame.to_ndarray(format="rgb48le")
    is_wide = getattr(frame, "color_primaries", _BT2020) in (_BT2020, 2)  # 2 is unspecified
    return Image.fromarray(map_tones(code_values, transfer, is_wide))


def map_tones(code_values: np.ndarray, transfer: int, is_wide: bool = True) -> np.ndarray:
    """Convert R'G'B' code values `H W 3`, uint16 of full range, to sRGB `H W 3`, uint8.

    `is_wide` says that the primaries are BT.2020's.
    """
    light = _decode_light(transfer)[code_values]  # 1 is reference white
    if transfer == HLG:
        # HLG stores the scene's light; a display of 1000 candelas raises luminance to the power 1.2.
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = light * (luminance[..., None] ** 0.2) * np.float32(_HLG_PEAK / _REFERENCE_WHITE)
    if is_wide:
        light = np.maximum(light @ _TO_BT709.T, 0)
    brightest = light.max(axis=2, keepdims=True)
    light = light * (
        _reduce_highlights(brightest) / np.maximum(brightest, 1e-9)
    )  # all channels alike, to keep the hue
    return np.rint(_encode_srgb(np.clip(light, 0, 1)) * 255).astype(np.uint8)


def _decode_light(transfer: int) -> np.ndarray:
    """Return the light of each 16-bit code value: PQ in units of reference white, HLG from 0 to 1."""
    signal = np.arange(65536, dtype=np.float64) / 65535
    if transfer == PQ:
        power = signal ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        return (light * 10000 / _REFERENCE_WHITE).astype(np.float32)
    bright = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(signal <= 0.5, signal**2 / 3, bright).astype(np.float32)


def _reduce_highlights(light: np.ndarray) -> np.ndarray:
    above = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
    return np.minimum(light, _KNEE) + (1 - _KNEE) * (1 - np.exp(-above))


def _encode_srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
