"""What to change when a training run does not fit its device, found before anything is loaded."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from ..encoders.sea_raft_config import SEA_RAFT_M
from ..wan.spec import TEMPORAL_STRIDE, WanSpec
from .decode_memory import estimate, list_modes
from .memory import (
    GIB,
    DitMemory,
    MemoryAccount,
    choose_resident_blocks,
    estimate_motion_memory,
    estimate_subject_memory,
)
from .motion_settings import MotionSettings
from .sura import SubjectSettings

log = logging.getLogger("smrabooth")

SUGGESTIONS = 2
"""Number of changes that are told."""
_REFUSED = 1.1
"""Share of the device's memory that an account must pass to be refused: accounts are good to 6 %, and those
for ComfyUI's DiT are up to a tenth too high.
"""
_SHARES = (0.8, 0.65, 0.5, 0.35)
"""Shares of width and height that are tried."""
_LESS_MEMORY = {
    "exact": ("exact-low-memory", "windowed", "tiny"),
    "exact-low-memory": ("tiny",),
    "windowed": ("tiny",),
    "auto": ("tiny",),
    "tiny": (),
}
"""Decode modes that need less memory than a mode, the nearest first."""


def describe_lack(account: MemoryAccount, memory: float, changes: Sequence[str]) -> str:
    """Return sentences on what a run needs, what the device has, and which changes make it fit."""
    what = "does not fit" if account.total > _REFUSED * memory else "may run out of memory"
    text = f"This training {what}: it needs {account.describe()}, and the device has {memory / GIB:.1f} GiB."
    if not changes:
        return f"{text} No smaller setting fits: take a smaller model or another device."
    return f"{text} What fits: {', or '.join(changes)}."


def check_memory(
    account: MemoryAccount, memory: float, list_changes: Callable[[], Sequence[str]]
) -> list[str]:
    """Return and log what of an account does not fit into `memory` bytes, and what to change; nothing where
    it fits.

    `account` is the least that the run can do with. Raises ValueError where it surely does not fit.
    """
    if account.total <= memory:
        return []
    text = describe_lack(account, memory, list_changes())
    if account.total > _REFUSED * memory:
        raise ValueError(text)
    log.warning("%s", text)
    return [text]


def list_motion_changes(
    spec: WanSpec,
    settings: MotionSettings,
    dit: DitMemory,
    memory: float,
    has_tiny_decoder: bool,
    batch_size: int = 1,
) -> list[str]:
    """Return the first changes of a motion run that fit into `memory` bytes, in words; at most two."""

    def try_changes() -> Iterator[tuple[str, MemoryAccount]]:
        if batch_size > 1:
            yield "batch_size 1", _estimate_least(spec, settings, dit)
        for decode in _LESS_MEMORY[settings.decode] if settings.mora_weight else ():
            file = "" if decode != "tiny" or has_tiny_decoder else f" (file {spec.latents.tiny_files[0]})"
            yield f"decode {decode}{file}", _estimate_least(spec, replace(settings, decode=decode), dit)
        for frames in _list_fewer_frames(settings.frames):
            yield f"frames {frames}", _estimate_least(spec, replace(settings, frames=frames), dit)
        for changed in _list_smaller(spec, settings):
            size = f"width {changed.width} and height {changed.height}"
            account = _estimate_least(spec, changed, dit)
            yield size, account
            for frames in () if account.fits(memory) else _list_fewer_frames(changed.frames):
                both = replace(changed, frames=frames)
                yield f"{size} with frames {frames}", _estimate_least(spec, both, dit)

    return _take_fitting(try_changes(), memory)


def list_subject_changes(
    spec: WanSpec,
    settings: SubjectSettings,
    dit: DitMemory,
    memory: float,
    batch_size: int,
    frames: int = 1,
) -> list[str]:
    """Return the first changes of a subject run that fit into `memory` bytes, in words; at most two."""

    def try_changes() -> Iterator[tuple[str, MemoryAccount]]:
        if batch_size > 1:
            yield "batch_size 1", estimate_subject_memory(spec, settings, dit, frames=frames)
        for changed in _list_smaller(spec, settings):
            size = f"width {changed.width} and height {changed.height}"
            yield size, estimate_subject_memory(spec, changed, dit, batch_size, frames=frames)

    return _take_fitting(try_changes(), memory)


def tell_subject_memory(
    settings: SubjectSettings,
    batch_size: int,
    spec: WanSpec,
    device: torch.device,
    model: DitMemory,
    frames: int = 1,
) -> None:
    """Log what a subject run takes on a card, and warn where it may not fit; nothing on other devices.

    `model` says how the DiT's weights are kept; they wait in host memory where they do not fit. Raises
    ValueError where it surely does not fit.
    """
    if device.type != "cuda":
        return
    _, memory = torch.cuda.mem_get_info(device)

    def count(dit: DitMemory) -> MemoryAccount:
        return estimate_subject_memory(spec, settings, dit, batch_size, frames=frames)

    resident = choose_resident_blocks(spec, lambda number: count(replace(model, resident=number)), memory)
    account, waiting = count(replace(model, resident=resident)), spec.blocks - resident
    where = f" {waiting} of {spec.blocks} blocks wait in host memory." if waiting else ""
    least, restored = model.take_least(), count(model.restore())
    if restored.fits(memory):
        account = restored
    if not account.fits(memory):
        account, where = count(least), f" All {spec.blocks} blocks and their inputs wait in host memory."
    log.info("Training takes about %s. The device has %.1f GiB.%s", account.describe(), memory / GIB, where)
    check_memory(
        count(least), memory,
        lambda: list_subject_changes(spec, settings, least, memory, batch_size, frames),
    )  # fmt: skip


def _estimate_least(spec: WanSpec, settings: MotionSettings, dit: DitMemory) -> MemoryAccount:
    """Return the account of these settings with the way to decode that needs the least memory."""
    modes = [mode for mode in list_modes(settings.decode) if settings.decode == "tiny" or mode[0] != "tiny"]
    accounts = [
        estimate_motion_memory(spec, settings, estimate(settings, *mode, spec), dit) for mode in modes
    ]
    return min(accounts, key=lambda account: account.total)


def _list_fewer_frames(frames: int) -> Iterator[int]:
    """Yield two thirds and a third of the frames, as 4n+1 and at least two latents."""
    for share in (2 / 3, 1 / 3):
        fewer = max(1, int((frames - 1) * share) // TEMPORAL_STRIDE) * TEMPORAL_STRIDE + 1
        if fewer < frames:
            yield fewer


def _list_smaller(
    spec: WanSpec, settings: MotionSettings | SubjectSettings
) -> Iterator[MotionSettings | SubjectSettings]:
    """Yield the settings with smaller frames, of about the same shape."""
    pixels = spec.latents.token_pixels
    for share in _SHARES:
        width, height = (
            max(1, round(share * side / pixels)) * pixels for side in (settings.width, settings.height)
        )
        if min(width, height) >= _find_least_side(settings):
            yield replace(settings, width=width, height=height)


def _find_least_side(settings: MotionSettings | SubjectSettings) -> int:
    """Return the shortest side in pixels that can be trained on; a tiny decoder shows SEA-RAFT half of it."""
    if isinstance(settings, SubjectSettings) or not settings.mora_weight:
        return 0
    return SEA_RAFT_M.least_side * (2 if settings.decode == "tiny" else 1)


def _take_fitting(changes: Iterator[tuple[str, MemoryAccount]], memory: float) -> list[str]:
    fitting = (f"{text} ({account.total / GIB:.1f} GiB)" for text, account in changes if account.fits(memory))
    return [text for text, _ in zip(fitting, range(SUGGESTIONS), strict=False)]
