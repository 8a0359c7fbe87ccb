"""What the program tells of a step's memory before it starts, by part, to compare with what is measured."""

from smra_core.training.decode_memory import estimate
from smra_core.training.memory import (
    DitMemory,
    count_model_bytes,
    estimate_motion_memory,
    estimate_subject_memory,
)


def tell_motion(spec, settings, decode: str, recompute: bool, sizes) -> dict[str, int]:
    """Return the bytes of a motion step by part."""
    choice = estimate(settings, decode, recompute, spec)
    account = estimate_motion_memory(spec, settings, choice, _take_whole_model(spec), 1, sizes.dtype.itemsize)
    return account.parts


def tell_subject(spec, settings, batch: int, sizes) -> dict[str, int]:
    """Return the bytes of a subject step by part."""
    whole = _take_whole_model(spec)
    return estimate_subject_memory(spec, settings, whole, batch, sizes.dtype.itemsize).parts


def _take_whole_model(spec) -> DitMemory:
    return DitMemory(count_model_bytes(spec))
