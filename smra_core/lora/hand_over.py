"""Noise level at which the two experts of Wan 2.2 hand over, and T_point at it.

T_point at the hand-over gives the early strengths to the high-noise expert and the late ones to the low-noise
expert, whatever steps, shift and cfg.
"""

from collections.abc import Sequence

from .schedule import StrengthSchedule, TPoint, count_early_steps, describe_run

OFFICIAL_STEPS, OFFICIAL_SHIFT = 20, 5.0
"""Steps and shift of ComfyUI's own Wan 2.2 graphs, text and image to video alike."""
OFFICIAL_SIGMA = OFFICIAL_SHIFT * 0.5 / (1 + (OFFICIAL_SHIFT - 1) * 0.5)
"""Hand-over of these graphs, 0.8333: after 10 of 20 steps, and with lightx2v's LoRAs after 2 of 4."""


def find_hand_over(sigmas: Sequence[float], boundary: float | None = None) -> int:
    """Return the number of steps that the high-noise expert makes in a run over these noise levels.

    Without a `boundary` it makes half of the steps, rounded down, as in ComfyUI's own graphs. With one it
    makes the steps that start at or above this noise level, as Wan's own program does (0.875 for text to
    video, 0.9 for image to video; Wan-Video/Wan2.2, `boundary` in its configs). `sigmas` are the levels of
    the whole run, both experts' parts together. Raises ValueError when they are of a part of a run.
    """
    levels = [float(sigma) for sigma in sigmas]
    if min(levels) > 0:
        raise ValueError(
            f"The noise levels run from {levels[0]:.3f} to {levels[-1]:.3f} and never reach 0, so they are "
            "those of one expert's part of a run. Connect the levels of the whole run, before they are split."
        )
    if boundary is None:
        return (len(levels) - 1) // 2
    return sum(level >= boundary for level in levels[:-1])


def describe_schedule(schedule: StrengthSchedule, t_point: TPoint, sigmas: Sequence[float]) -> str:
    """Describe in one line where a run switches, and with T_point at the hand-over what each expert gets."""
    if not schedule.at_hand_over:
        return describe_run(t_point, sigmas)
    steps, high = len(sigmas) - 1, count_early_steps(t_point, sigmas)
    if not 0 < high < steps:
        expert, other = ("high", "low") if high else ("low", "high")
        return (
            f"no hand-over of the experts: the {expert}-noise expert makes all {steps} steps and the "
            f"{other}-noise expert none; {describe_run(t_point, sigmas)}"
        )
    return (
        f"hand-over of the experts at step {high} of {steps}, sigma {float(sigmas[high]):.3f}: early "
        "strengths on the high-noise expert, late strengths on the low-noise expert"
    )
