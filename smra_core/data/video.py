"""Read and write video files, one frame at a time."""

import os
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..storage.atomic_write import write_atomically
from ..wan.latents import to_uint8
from ..wan.spec import trim_frames
from .crop import Size, check_target, cover_box, describe_crop, fit

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
# FFmpeg detects the format from the content: a playlist called .mp4 could make it open other files or URLs.
_SAFE_INPUT = {"format_whitelist": "mov,mp4,matroska,webm,avi", "protocol_whitelist": "file"}
_DEFAULT_FPS = 16.0
"""Frame rate of WAN 2.1, assumed for files that do not give theirs."""
_JITTER = 1.5
"""Ratio of longest to shortest frame time above which the rate counts as variable; rounding stays below."""


class Video(NamedTuple):
    """Frames of a video file."""

    frames: Tensor
    """`F 3 H W`, RGB in [0, 1]."""
    fps: float
    """Frame rate of the returned frames: the file's rate divided by the stride."""
    notes: list[str]
    """Notes on what was cropped, trimmed or assumed."""


def read_video(path: Path, size: Size, frames: int, start: int = 0, stride: int = 1) -> Video:
    """Read up to `frames` frames from number `start`, every `stride`-th, resized to cover `size` and cropped.

    Frames are used as stored, whatever their timestamps; the file's rotation and pixel aspect ratio are
    applied. Only frames of the wanted size are held in memory. Raises ValueError, with the path, when no
    frame can be read.
    """
    import av
    from av.error import FFmpegError

    check_target(size)
    if frames < 1 or start < 0 or stride < 1:
        raise ValueError(
            f"Reading {path} needs frames >= 1, start >= 0, stride >= 1; got {frames}, {start}, {stride}."
        )
    try:
        with av.open(str(path), options=_SAFE_INPUT) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream. Give a video file.")
            return _read_stream(path, container, size, range(start, start + frames * stride, stride))
    except FFmpegError as error:
        raise ValueError(
            f"{path} cannot be read as a video ({error}). Convert it to mp4 (H.264) and try again."
        ) from error


def _read_stream(path: Path, container, size: Size, wanted: range) -> Video:
    from av.error import FFmpegError

    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    pictures, times, notes, seen = [], [], [], 0
    try:
        for seen, frame in enumerate(container.decode(stream), 1):
            times.append(frame.time)
            if seen - 1 in wanted:
                pictures.append(_crop_frame(frame, stream, size, notes))
            if seen > wanted[-1]:
                break
    except FFmpegError as error:  # the frames before the damage may be enough
        notes.append(f"the file is damaged after frame {seen} ({error})")
    if not pictures:
        raise ValueError(
            f"{path} has {seen} readable frames, none from number {wanted.start} on. "
            "Choose an earlier start or another file."
        )
    unused = stream.frames - seen
    notes += [f"{unused} frames after number {seen - 1} are not used"] if unused > 0 else []
    notes += _note_uneven_times(times)
    return Video(_stack_frames(pictures), _get_frame_rate(stream, wanted.step, notes), notes)


def _crop_frame(frame, stream, size: Size, notes: list[str]) -> np.ndarray:
    """Turn a decoded frame upright, crop it and resize it; returns `H W 3`, uint8."""
    image = frame.to_image()
    aspect = float(stream.sample_aspect_ratio or 1)
    quarter_turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if quarter_turns:
        image = image.transpose(Image.Transpose(Image.Transpose.ROTATE_90 + quarter_turns - 1))
        aspect = 1 / aspect if quarter_turns % 2 else aspect
    box = cover_box(image.size, size, aspect)
    note = describe_crop(image.size, box)
    if note and note not in notes:
        notes.append(note)
    return np.asarray(fit(image, size, box))


def _stack_frames(pictures: list[np.ndarray]) -> Tensor:
    return rearrange(torch.from_numpy(np.stack(pictures)), "f h w c -> f c h w").float().div_(255)


def _note_uneven_times(times: list[float | None]) -> list[str]:
    known = [time for time in times if time is not None]
    gaps = [later - earlier for earlier, later in zip(known, known[1:], strict=False) if later > earlier]
    if not gaps or max(gaps) <= _JITTER * min(gaps):
        return []
    apart = f"{1000 * min(gaps):.0f} to {1000 * max(gaps):.0f} ms apart"
    return [f"variable frame rate: frames are {apart} and used as stored"]


def _get_frame_rate(stream, stride: int, notes: list[str]) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        notes.append(f"the file does not say its frame rate; {_DEFAULT_FPS:g} fps is assumed")
    return float(rate or _DEFAULT_FPS) / stride


def trim_video(video: Video, wanted: int) -> Video:
    """Trim a video to the largest 4n+1 frames, with a note when it has fewer frames than wanted."""
    have = len(video.frames)
    keep = trim_frames(have)
    if have >= wanted and keep == have:
        return video
    note = f"{wanted} frames were asked for, {have} are there, {keep} are used (WAN needs 4n+1)"
    return video._replace(frames=video.frames[:keep], notes=[*video.notes, note])


def write_video(path: str | os.PathLike, frames: Tensor, fps: float) -> None:
    """Write `F 3 H W` in [0, 1] to an mp4 file, H.264 (else MPEG-4 part 2), 8-bit 4:2:0, atomically.

    Raises ValueError for odd sides (4:2:0 stores color per 2x2 pixels), another layout, or values far from
    [0, 1].
    """
    import av

    _check_writable(path, frames, fps)
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with write_atomically(path) as draft:
        with av.open(str(draft), "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = frames.shape[-2:]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "17"} if codec == "libx264" else {"qscale": "3"}
            for picture in frames:
                image = av.VideoFrame.from_ndarray(_to_array(picture), format="rgb24")
                container.mux(stream.encode(image))
            container.mux(stream.encode())


def _to_array(picture: Tensor) -> np.ndarray:
    return np.ascontiguousarray(rearrange(to_uint8(picture), "c h w -> h w c").cpu().numpy())


def _check_writable(path: str | os.PathLike, frames: Tensor, fps: float) -> None:
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[1] != 3 or not shape[0]:
        raise ValueError(f"Frames for {path} have the shape {shape}; give (F, 3, H, W) with F >= 1.")
    if shape[2] % 2 or shape[3] % 2:
        raise ValueError(
            f"Frames for {path} are {shape[3]}x{shape[2]}; mp4 needs even sides. "
            f"Use {shape[3] // 2 * 2}x{shape[2] // 2 * 2}."
        )
    low, high = frames.min().item(), frames.max().item()
    if not (low >= -0.01 and high <= 1.01):  # also when NaN
        raise ValueError(
            f"Frames for {path} lie in [{low:g}, {high:g}]; give [0, 1]: (x + 1) / 2 of pixels in [-1, 1]."
        )
    if not 0 < fps <= 1000:
        raise ValueError(f"The frame rate for {path} is {fps}; give more than 0 and at most 1000 per second.")
