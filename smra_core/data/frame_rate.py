"""Choose frames of a clip by number or by time, so that its motion plays at its own speed in the model's
videos.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from ..wan.spec import LATENTS_21, LATENTS_22

Item = TypeVar("Item")

WAN_FPS = LATENTS_21.fps
"""Frames per second of the videos of most models of WAN; TI2V-5B has its own."""
_SAME_RATE = 0.05
"""Relative difference of two frame rates that nobody sees (PAL plays films 4 % faster). Within it frames are
taken one by one, as leaving one out would show.
"""
_JITTER = 1.5
"""Ratio of longest to shortest frame time above which the rate counts as variable; rounding stays below."""


class Timing(NamedTuple):
    """Times of a clip's frames."""

    fps: float
    """Average frame rate."""
    shortest: float = 0.0
    """Shortest time from a frame to the next, in seconds; 0 where no times are known."""
    longest: float = 0.0
    frames: int = 0
    """Number of frames that the file states; 0 when it does not."""
    is_assumed: bool = False
    """Whether the clip gives no rate, so that the model's is assumed."""

    @property
    def is_variable(self) -> bool:
        return self.longest > _JITTER * self.shortest


class FrameChoice(NamedTuple):
    """Rule by which frames are taken from a clip."""

    fps: float
    """Frame rate of the taken frames at stride 1."""
    by_time: bool
    """Whether the frame nearest to each time is taken; otherwise every frame is, in order."""


def measure_timing(times: Iterable[float | None], stated_fps: float | None, frames: int = 0) -> Timing:
    """Measure the frame rate from times in seconds, in any order; without times take the rate that a file
    states.

    A steady clip keeps the stated rate, which is exact where times are rounded to milliseconds.
    """
    known = sorted({time for time in times if time is not None})
    gaps = [later - earlier for earlier, later in zip(known, known[1:], strict=False)]
    if not gaps:
        return Timing(stated_fps or WAN_FPS, frames=frames, is_assumed=not stated_fps)
    measured = len(gaps) / (known[-1] - known[0])
    timing = Timing(measured, min(gaps), max(gaps), frames)
    states_the_same = stated_fps and abs(stated_fps / measured - 1) <= _SAME_RATE
    return timing._replace(fps=stated_fps) if states_the_same and not timing.is_variable else timing


def check_frame_rate(fps: float | None) -> None:
    """Raise ValueError unless the wanted rate is None (frames as they are) or a positive number."""
    if fps is not None and not 0 < fps <= 1000:  # also when NaN
        raise ValueError(
            f"The frame rate to read at is {fps:g}; give more than 0 and at most 1000 frames per second "
            f"(WAN's is {WAN_FPS:g}, TI2V-5B's {LATENTS_22.fps:g}), or keep the frames as they are."
        )


def choose_frame_rate(timing: Timing, wanted_fps: float | None) -> FrameChoice:
    """Choose how a clip is read at the wanted rate; None takes its frames as they are.

    A slower clip is not brought up to the wanted rate: repeated frames have no optical flow, and a motion
    that stands still every other frame would be learned.
    """
    if wanted_fps is None or timing.is_assumed:
        return FrameChoice(timing.fps, by_time=False)
    is_slower = timing.fps < wanted_fps * (1 - _SAME_RATE)
    is_same = abs(timing.fps / wanted_fps - 1) <= _SAME_RATE
    if not timing.is_variable and (is_slower or is_same):
        return FrameChoice(timing.fps, by_time=False)
    return FrameChoice(timing.fps if is_slower else wanted_fps, by_time=True)


def describe_frame_rate(
    timing: Timing, choice: FrameChoice, stride: int, model_fps: float = WAN_FPS
) -> list[str]:
    """Return sentences on the clip's rate, on which frames are taken, and on the speed that the motion has in
    videos of `model_fps` frames per second.
    """
    rate = f"{timing.fps:.4g} fps"
    if timing.is_assumed:
        first = f"its frame rate is not known; {rate} is assumed, and frames are taken one by one"
    elif timing.is_variable:
        apart = f"{1000 * timing.shortest:.0f} to {1000 * timing.longest:.0f} ms apart"
        used = f"taken by their times, {choice.fps:.4g} fps" if choice.by_time else "used as stored"
        first = f"variable frame rate, {rate} on average: frames are {apart} and {used}"
    elif choice.by_time:
        first = (
            f"{rate} clip: every {_name_ordinal(timing.fps / choice.fps)} frame by time, {choice.fps:.4g} fps"
        )
    else:
        first = f"{rate} clip: frames are taken one by one"
    skipped = f"stride {stride}: of these, every {_name_ordinal(stride)} frame is used" if stride > 1 else ""
    return [note for note in (first, skipped, _describe_speed(choice.fps / stride, model_fps)) if note]


def _describe_speed(fps: float, model_fps: float) -> str:
    """Return how fast the motion plays at the model's rate; an empty string at its own speed."""
    faster = model_fps / fps
    if abs(faster - 1) <= _SAME_RATE:
        return ""
    speed = f"{faster:.3g} times faster" if faster > 1 else f"{1 / faster:.3g} times slower"
    return f"WAN's videos have {model_fps:g} fps: the motion becomes {speed}"


def _name_ordinal(number: float) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number:.4g}th")


def pick_frames(
    frames: Iterable[tuple[float | None, Item]],
    choice: FrameChoice,
    timing: Timing,
    count: int,
    start: int = 0,
    stride: int = 1,
) -> Iterator[Item]:
    """Yield up to `count` of a clip's frames (time in seconds, frame), from frame number `start` on.

    By number it is every `stride`-th; by time the frame nearest to every `stride / choice.fps` seconds after
    the first one, the earlier of two that are equally near. Reads no further than needed.
    """
    numbered = enumerate(frames)
    if choice.by_time:
        yield from _pick_by_time(numbered, start, stride / choice.fps, timing.fps, count)
        return
    wanted = range(start, start + count * stride, stride)
    for number, (_, frame) in numbered:
        if number in wanted:
            yield frame
        if number >= wanted[-1]:
            return


def _pick_by_time(
    numbered: Iterable[tuple[int, tuple[float | None, Item]]], start: int, step: float, fps: float, count: int
) -> Iterator[Item]:
    first, taken = 0.0, 0
    before: tuple[float, Item] | None = None
    for number, (stored_time, frame) in numbered:
        time = number / fps if stored_time is None else stored_time
        if number < start:
            continue
        first = time if number == start else first
        while taken < count and time >= (target := first + taken * step) - 1e-6:
            is_before_nearer = before is not None and target - before[0] <= time - target + 1e-6
            yield before[1] if is_before_nearer else frame  # type: ignore[index]
            taken += 1
        if taken == count:
            return
        before = (time, frame)
    # The last frame stands for half a frame's time after it.
    while before and taken < count and first + taken * step - before[0] <= 0.5 / fps:
        yield before[1]
        taken += 1
