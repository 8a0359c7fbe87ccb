"""Floating-point operations of MoRA in a motion step: decoding, optical flow, and back again.

Scaled from counts of the real nets at 576x320 and 49 frames on the meta device (python -m
tests.benchmarks.motion_step): both parts are convolutions, so that they grow with frames and pixels.
"""

from ..wan.spec import TEMPORAL_STRIDE, latent_frames, pixel_frames
from .mora import MotionSettings

_PIXELS = 576 * 320
_DECODED_FRAME, _TINY_FRAME, _PAIR = 3.14e12, 0.13e12, 0.1e12
"""Forward and backward, at `_PIXELS`; a pair of frames goes through SEA-RAFT M at half scale."""
_SMALL_STAGES = 0.21
"""Share of the decoder below half of the frame's size, which decodes half of a window's context alone."""
_RECOMPUTED, _TWICE = 1.24, 1.5
"""A decoder whose blocks' insides are computed again, and one that is run again whole."""


def alignment_flops(settings: MotionSettings, decode: str, recompute: bool) -> float:
    """Of one sample; `decode` is one of mora.DECODES but `auto`. 0 where mora_weight is 0."""
    if not settings.mora_weight:
        return 0.0
    frames = float(pixel_frames(latent_frames(settings.frames)))
    pairs, frame = frames - 1, _DECODED_FRAME
    if decode == "tiny":
        frame = _TINY_FRAME
    elif decode == "exact-low-memory":
        frame *= _TWICE
    elif recompute:
        frame *= _RECOMPUTED
    if decode == "windowed":
        shallow = settings.context // 2
        whole = TEMPORAL_STRIDE * (settings.window + settings.context - shallow)
        frames = min(frames, whole + _SMALL_STAGES * TEMPORAL_STRIDE * shallow)
        pairs = min(pairs, TEMPORAL_STRIDE * settings.window)
    return (frames * frame + pairs * _PAIR) * settings.width * settings.height / _PIXELS
