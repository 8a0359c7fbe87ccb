"""Choose the decode mode of a motion step that fits the memory of the device."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ..wan.spec import WanSpec
from .decode_memory import DecodeChoice, estimate, list_modes
from .memory import GIB, DitMemory, MemoryAccount, count_model_bytes, estimate_motion_memory
from .memory_advice import check_memory, list_motion_changes
from .motion_settings import MotionSettings

log = logging.getLogger("smrabooth")

MEMORY_ADVICE = {
    "exact": "Change decode to 'exact-low-memory', which has the same gradient, or to 'windowed'",
    "exact-low-memory": "Change decode to 'tiny', with the file of a tiny decoder",
    "windowed": "Lower window or context, or change decode to 'tiny', with the file of a tiny decoder",
}
"""Advice shown when a decode mode runs out of memory."""
_SMALLER_DATA = "lower batch_size, the frames, or the width and height"


def choose_decode(
    settings: MotionSettings,
    spec: WanSpec,
    device: torch.device,
    tiny_decoder: Path | None,
    memory: float | None = None,
    weights: DitMemory | None = None,
) -> DecodeChoice:
    """Return the mode named in the settings; for `auto`, the first that fits into `memory` bytes.

    `auto` decodes the whole clip, as the paper does: a window saves time, but a step that compares one
    teaches about half as much of the motion (see the bench of the miniature).

    If `memory` is not given, it is all of the device's: what is free at this moment depends on other
    programs, and another choice would be another run. A warning is logged if less than needed is free now.
    `weights` says how the DiT is kept; without it, in half precision, and on the device as far as it fits.
    Where mora_weight is 0 nothing is decoded, and the mode stays as it is. ValueError if the mode is `tiny`
    and there is no tiny decoder's file, and where nothing fits. Logs what the step will need, and what to
    change where it may not fit.
    """
    if not settings.mora_weight:
        return DecodeChoice(settings.decode, False, 0.0)
    if settings.decode == "tiny" and tiny_decoder is None:
        raise ValueError(
            "decode 'tiny' needs a tiny decoder's file. Give "
            f"{spec.latents.name_tiny_files()}, or change decode."
        )
    free = memory
    if memory is None and device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(device)
    modes = [mode for mode in list_modes(settings.decode) if mode[0] != "tiny" or tiny_decoder is not None]
    choices = [estimate(settings, *mode, spec, tiny_decoder) for mode in modes]
    if memory is None or free is None:
        return choices[0]
    weights = weights or DitMemory(count_model_bytes(spec), can_wait=True)
    told = [
        (choice, estimate_motion_memory(spec, settings, choice, way))
        for way in weights.list_ways()
        for choice in choices
    ]
    choice, account = _choose_first_that_fits(told, memory)
    restored = estimate_motion_memory(spec, settings, choice, weights.restore())
    if restored.fits(memory):
        account = restored
    log.info(
        "decode: %s%s, about %.1f GiB (%.1f of them activations) of %.1f GiB",
        choice.decode, " with recompute" if choice.recompute else "",
        account.total / GIB, choice.bytes / GIB, memory / GIB,
    )  # fmt: skip
    least = weights.list_ways()[-1]
    check_memory(
        account, memory,
        lambda: list_motion_changes(spec, settings, least, memory, tiny_decoder is not None),
    )  # fmt: skip
    if free < account.total <= memory:
        log.warning(
            "Only %.1f GiB are free now, and the step may run out of memory. Close what else uses the card.",
            free / GIB,
        )
    return choice


def choose_memory_advice(settings: MotionSettings) -> str:
    """Return what to change when a step with these settings runs out of memory, as a sentence."""
    advice = MEMORY_ADVICE.get(settings.decode) if settings.mora_weight else None
    return f"{advice}; or {_SMALLER_DATA}." if advice else f"{_SMALLER_DATA.capitalize()}."


def _choose_first_that_fits(
    told: Sequence[tuple[DecodeChoice, MemoryAccount]], memory: float
) -> tuple[DecodeChoice, MemoryAccount]:
    """Return the first choice whose account fits, or the smallest if none fits."""
    fitting = [pair for pair in told if pair[1].fits(memory)]
    return fitting[0] if fitting else min(told, key=lambda pair: pair[1].total)
