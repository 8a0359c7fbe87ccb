"""Read and write video files, one frame at a time."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..storage.atomic_write import write_atomically
from ..wan.latents import to_uint8
from ..wan.spec import trim_frames
from .crop import Size, check_target, cover_box, describe_crop, describe_enlargement, fit
from .frame_rate import (
    WAN_FPS,
    Timing,
    check_frame_rate,
    choose_frame_rate,
    describe_frame_rate,
    measure_timing,
    pick_frames,
)
from .tone_mapping import find_hdr_transfer, map_frame_tones, name_transfer

Item = TypeVar("Item")

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
_STILL_PICTURES = 1 << 10 | 1 << 11 | 1 << 20
"""FFmpeg's flags AV_DISPOSITION_ATTACHED_PIC, _TIMED_THUMBNAILS and _STILL_IMAGE."""
_TIMED_FRAMES = 2000
"""Frames after the start whose times decide the rate; more would only take time."""
# FFmpeg detects the format from the content: a playlist called .mp4 could make it open other files or URLs.
_SAFE_INPUT = {"format_whitelist": "mov,mp4,matroska,webm,avi", "protocol_whitelist": "file"}


class Video(NamedTuple):
    """Frames of a video file."""

    frames: Tensor
    """`F 3 H W`, RGB in [0, 1]."""
    fps: float
    """Frame rate of the returned frames: the clip's own or the wanted rate, divided by the stride."""
    notes: list[str]
    """Notes on what was cropped, trimmed or assumed."""
    numbers: tuple[int, ...] = ()
    """Number of each returned frame in the clip, from 0."""


class Selection(NamedTuple):
    """Choice of the frames that are read from a clip."""

    frames: int
    """Most frames that are read."""
    start: int = 0
    """Number of the clip's frame that comes first, from 0."""
    stride: int = 1
    """Every how many-th of the frames at the wanted rate is used."""
    fps: float | None = None
    """Frame rate that the clip is brought to by time; None takes its frames as they are."""
    model_fps: float = WAN_FPS
    """Frame rate of the model's videos, which is assumed for clips that give none."""


def read_video(
    path: Path,
    size: Size,
    frames: int,
    start: int = 0,
    stride: int = 1,
    fps: float | None = None,
    model_fps: float = WAN_FPS,
) -> Video:
    """Read up to `frames` frames from number `start`, resized to cover `size` and cropped.

    With `fps` the clip is brought to that rate by the times of its frames first
    (`frame_rate.choose_frame_rate` says when), otherwise its frames are used as stored; of these every
    `stride`-th is read. The file's rotation, pixel aspect ratio and color range are applied, HDR is
    tone-mapped, and a cover picture is no clip. Only frames of the wanted size are held in memory. Raises
    ValueError, with the path, when no frame can be read.
    """
    selection = Selection(frames, start, stride, fps, model_fps)
    check_selection(path, size, selection)
    with _explain_read_errors(path):
        return _read_stream(path, size, selection)


def read_video_size(path: Path) -> Size:
    """Return width and height of a video in square pixels, turned upright, from its first frame.

    Raises ValueError, with the path, when no frame can be read.
    """
    with _explain_read_errors(path), _open_video(path) as (container, stream):
        frame = next((frame for _, frame in _decode(container, stream, [])), None)
        if frame is None:
            raise ValueError(f"{path} has no readable frame. Choose another file.")
        width, height = round(frame.width * float(stream.sample_aspect_ratio or 1)), frame.height
        return (height, width) if _count_quarter_turns(frame) % 2 else (width, height)


@contextmanager
def _explain_read_errors(path: Path) -> Iterator[None]:
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        # FFmpeg answers so for kinds that are not among _SAFE_INPUT's.
        reason = "it is of another kind" if error.errno == errno.EINVAL else error
        raise ValueError(
            f"{path} cannot be read as a video ({reason}). Convert it to mp4 (H.264) and try again. Read are "
            f"{', '.join(VIDEO_SUFFIXES)}, GIF, animated WebP, and folders of numbered pictures."
        ) from error


def check_selection(path: Path, size: Size, selection: Selection) -> None:
    """Raise ValueError unless size, frames, start, stride and rate can be read."""
    check_target(size)
    check_frame_rate(selection.fps)
    frames, start, stride = selection.frames, selection.start, selection.stride
    if frames < 1 or start < 0 or stride < 1:
        raise ValueError(
            f"Reading {path} needs frames >= 1, start >= 0, stride >= 1; got {frames}, {start}, {stride}."
        )


def build_video(
    path: Path,
    frames: Iterable[tuple[float | None, Item]],
    convert: Callable[[Item], np.ndarray],
    timing: Timing,
    selection: Selection,
    notes: list[str],
) -> Video:
    """Read the selected ones of a clip's frames (time in seconds, frame), converted to `H W 3`, uint8.

    Raises ValueError, with the path, when the clip has no frame from `selection.start` on.
    """
    if timing.is_assumed:
        timing = timing._replace(fps=selection.model_fps)
    choice, seen = choose_frame_rate(timing, selection.fps), 0

    def enumerate_frames() -> Iterator[tuple[float | None, tuple[int, Item]]]:
        nonlocal seen
        for number, (time, frame) in enumerate(frames):
            seen = number + 1
            yield time, (number, frame)

    counts = (selection.frames, selection.start, selection.stride)
    picked: list[np.ndarray] = []
    numbers: list[int] = []
    for number, frame in pick_frames(enumerate_frames(), choice, timing, *counts):
        is_repeated = bool(numbers) and number == numbers[-1]
        picked.append(picked[-1] if is_repeated else convert(frame))
        numbers.append(number)
    repeated = len(numbers) - len(set(numbers))
    if not picked:
        raise ValueError(
            f"{path} has {seen} readable frames, none from number {selection.start} on. "
            "Choose an earlier start or another file."
        )
    notes += describe_frame_rate(timing, choice, selection.stride, selection.model_fps)
    notes += [f"repeated frames, where the clip stands still: {repeated}"] if repeated else []
    unused = timing.frames - seen
    notes += [f"{unused} frames after number {seen - 1} are not used"] if unused > 0 else []
    return Video(_stack_frames(picked), choice.fps / selection.stride, notes, tuple(numbers))


def _read_stream(path: Path, size: Size, selection: Selection) -> Video:
    notes: list[str] = []
    timing = _measure_times(path, selection)
    with _open_video(path) as (container, stream):
        others = [other for other in container.streams.video if not _is_cover(other) and other is not stream]
        notes += [f"it holds {len(others) + 1} videos, the first is used"] if others else []

        def convert(frame) -> np.ndarray:
            return _crop_frame(frame, stream, size, notes)

        return build_video(path, _decode(container, stream, notes), convert, timing, selection, notes)


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and its first video stream that is no cover picture."""
    import av

    with av.open(str(path), options=_SAFE_INPUT) as container:
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            what = "only a cover picture" if container.streams.video else "no video stream"
            raise ValueError(f"{path} has {what}. Give a video file.")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


def _is_cover(stream) -> bool:
    """Return whether a stream is a picture attached to the file, such as a cover or thumbnails."""
    # PyAV tells dispositions since version 13.
    return bool(int(getattr(stream, "disposition", 0)) & _STILL_PICTURES)


def _measure_times(path: Path, selection: Selection) -> Timing:
    """Measure the rate from the times in a file's packets, without decoding them."""
    from av.error import FFmpegError

    times: list[float | None] = []
    with _open_video(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                stamp = packet.dts if packet.pts is None else packet.pts
                times.append(None if stamp is None else float(stamp * packet.time_base))
                if len(times) > selection.start + _TIMED_FRAMES:
                    break
        except FFmpegError:  # damage is told when the frames are decoded
            pass
        rate = stream.average_rate or stream.guessed_rate
        return measure_timing(times, float(rate) if rate else None, stream.frames)


def _decode(container, stream, notes: list[str]) -> Iterator[tuple[float | None, Any]]:
    """Yield time and frame; ends with a note where the file is damaged."""
    from av.error import FFmpegError

    seen = 0
    try:
        for seen, frame in enumerate(container.decode(stream), 1):  # noqa: B007
            yield frame.time, frame
    except FFmpegError as error:  # the frames before the damage may be enough
        notes.append(f"the file is damaged after frame {seen} ({error})")


def _crop_frame(frame, stream, size: Size, notes: list[str]) -> np.ndarray:
    """Turn a decoded frame upright, crop it and resize it; returns `H W 3`, uint8."""
    transfer = find_hdr_transfer(frame, stream)
    image = frame.to_image() if transfer is None else map_frame_tones(frame, transfer)
    hdr = transfer and f"HDR video ({name_transfer(transfer)}), its brightness is mapped to ordinary video"
    aspect = float(stream.sample_aspect_ratio or 1)
    quarter_turns = _count_quarter_turns(frame)
    if quarter_turns:
        image = image.transpose(Image.Transpose(Image.Transpose.ROTATE_90 + quarter_turns - 1))
        aspect = 1 / aspect if quarter_turns % 2 else aspect
    box = cover_box(image.size, size, aspect)
    add_new_notes(
        notes, [hdr, *_describe_frame(frame), describe_crop(image.size, box), describe_enlargement(box, size)]
    )
    return np.asarray(fit(image, size, box))


def _count_quarter_turns(frame) -> int:
    """Return by how many quarter turns, counterclockwise, a frame must be turned to be upright."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _describe_frame(frame) -> list[str]:
    """Return notes on what a frame has that is used as it is or not at all."""
    notes = []
    if getattr(frame, "interlaced_frame", False):
        notes.append("interlaced video, whose comb lines would be learned: deinterlace it first")
    if any(component.is_alpha for component in frame.format.components):
        notes.append("its transparency is not used")
    return notes


def add_new_notes(notes: list[str], found: Iterable[str | None]) -> None:
    """Add the notes that are not there yet; every frame of a clip makes the same ones."""
    notes += [note for note in found if note and note not in notes]


def _stack_frames(pictures: list[np.ndarray]) -> Tensor:
    return rearrange(torch.from_numpy(np.stack(pictures)), "f h w c -> f c h w").float().div_(255)


def trim_video(video: Video, wanted: int) -> Video:
    """Trim a video to the largest 4n+1 frames, with a note when it has fewer frames than wanted."""
    have = len(video.frames)
    keep = trim_frames(have)
    if have >= wanted and keep == have:
        return video
    note = f"{wanted} frames were asked for, {have} are there, {keep} are used (WAN needs 4n+1)"
    return video._replace(
        frames=video.frames[:keep], notes=[*video.notes, note], numbers=video.numbers[:keep]
    )


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
