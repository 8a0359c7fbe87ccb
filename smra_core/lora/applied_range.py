"""Where in a sampling run a LoRA is applied that was trained at a part of the noise levels."""

from collections.abc import Sequence

from ..wan.noise_range import NoiseRange

AS_TRAINED, EVERYWHERE = "as trained", "everywhere"
APPLIED_RANGES = (AS_TRAINED, EVERYWHERE)
"""Choices of a user: at the noise levels that the LoRA was trained at, or at all of them."""
_MARGIN = 1e-4
"""Difference of a sampler's own sigma from the end of a range that counts as rounding."""
_PURE_NOISE = 0.999
"""Noise level from which on a run starts from pure noise."""


def is_applied(noise_range: NoiseRange, sigma: float, sigmas: Sequence[float]) -> bool:
    """Return whether a LoRA of this range is applied at one evaluation of the model at `sigma`.

    `sigmas` are the levels of the run, or none where they are not known. The range of one expert of Wan 2.2
    stands for that expert: a run over a part of the levels, as each expert makes it, counts as a whole, and
    is inside if at least half of its steps are. The experts hand over where the graph says, 0.8333 in
    ComfyUI's own, which is not the level of 0.875 or 0.9 that they were trained up to.
    """
    if noise_range.is_whole:
        return True
    if noise_range.expert is not None and _is_part(sigmas):
        inside = [_holds(noise_range, level) for level in sigmas[:-1]]
        if 2 * sum(inside) >= len(inside):
            return True
    return _holds(noise_range, sigma)


def _is_part(sigmas: Sequence[float]) -> bool:
    """Return whether a run leaves out the highest or the lowest noise levels."""
    return len(sigmas) > 1 and (min(sigmas) > 0 or max(sigmas) < _PURE_NOISE)


def _holds(noise_range: NoiseRange, sigma: float) -> bool:
    return noise_range.low - _MARGIN <= sigma <= noise_range.high + _MARGIN


def describe_gain(purpose: str, noise_range: NoiseRange, choice: str) -> str:
    """Return a sentence on what a user gains by `choice`, which applies a LoRA everywhere, on one model.

    It is empty but for a motion LoRA of a range that reaches up to pure noise. Source: the miniature's bench.
    """
    if purpose != "motion" or noise_range.is_whole or noise_range.high < _PURE_NOISE:
        return ""
    return f"On one model without experts {choice} transfers more motion (measured on the miniature)"


def describe_applied(noise_range: NoiseRange, sigmas: Sequence[float]) -> str:
    """Describe in one line in how many steps of a run a LoRA of this range is applied."""
    applied = [is_applied(noise_range, level, sigmas) for level in sigmas[:-1]]
    used = f"{sum(applied)} of {len(applied)} steps"
    return f"a LoRA trained at the noise range {noise_range} is applied in {used}, with strength 0 elsewhere"
