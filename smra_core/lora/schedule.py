"""When and how strongly each LoRA acts in a run: T_point with the strengths of both LoRAs, and its account
in words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .plan import MOTION_STRENGTHS, SUBJECT_STRENGTHS, Strengths, TPointSchedule


@dataclass(frozen=True)
class SparseSchedule:
    """Plain numbers that one scheduler hands to any number of LoRA loaders."""

    t_point: float = TPointSchedule().sigma
    """A sigma, or with `as_share` the share of the steps that lie before the switch."""
    as_share: bool = False
    subject: Strengths = SUBJECT_STRENGTHS
    motion: Strengths = MOTION_STRENGTHS

    def __post_init__(self):
        if not 0.0 <= self.t_point <= 1.0:
            raise ValueError(
                f"T_point is {self.t_point}; give a {'share' if self.as_share else 'sigma'} from 0 to 1."
            )

    def resolve(self, sigma_of_share: Callable[[float], float]) -> TPointSchedule:
        """T_point as a noise level; a share is turned into one by the sampler's own table of noise levels.

        `sigma_of_share` tells which sigma a run has reached after that share of its steps (ComfyUI's
        `percent_to_sigma`).
        """
        return TPointSchedule(sigma_of_share(self.t_point) if self.as_share else self.t_point)


def switch_step(t_point: TPointSchedule, sigmas: Sequence[float]) -> int:
    """Number of steps of this run that have the early strengths: 0 is all late, the number of steps all
    early.
    """
    boundary = t_point.boundary(sigmas)
    return sum(1 for sigma in sigmas[:-1] if sigma > boundary)


def describe_run(t_point: TPointSchedule, sigmas: Sequence[float]) -> str:
    """Where a run over these noise levels switches, as one line.

    A run that stays on one side says why: the two experts of Wan 2.2 each run over a part of the levels.
    """
    steps, first, last = len(sigmas) - 1, float(sigmas[0]), float(sigmas[-1])
    early = switch_step(t_point, sigmas)
    level = f"T_point at sigma {t_point.sigma:.2f}"
    if early == 0:
        reason = "lies at or below" if first <= t_point.sigma else "is the level nearest to"
        return f"no switch, late strengths throughout: the start at sigma {first:.3f} {reason} {level}"
    if early == steps:
        return f"no switch, early strengths throughout: the end at sigma {last:.3f} lies above {level}"
    return f"switch at step {early} of {steps}, sigma {float(sigmas[early]):.3f} ({level})"
