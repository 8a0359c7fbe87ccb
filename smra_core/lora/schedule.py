"""Strength of each LoRA at a noise level: T_point and the strengths before and after it.

Paper section "Subject-Motion Association Decoupling": before T_point motion leads and the subject is weak,
after it the subject's strength is doubled.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from .adapter import Injection, Lora, injected


@dataclass(frozen=True)
class Strengths:
    """Strengths of a LoRA before and after T_point; a plain LoRA has the same strength on both sides."""

    early: float
    """Strength above T_point, at high noise."""
    late: float
    """Strength at and below T_point."""

    @classmethod
    def from_value(cls, value: float) -> "Strengths":
        """Return the same strength on both sides of T_point."""
        return cls(value, value)


# The paper says "doubled" and gives no numbers; the authors' release ends at 0.8. Doubling to 0.8 agrees with
# both.
SUBJECT_STRENGTHS = Strengths(0.4, 0.8)
SUBJECT_STRENGTHS_RELEASE = Strengths(0.6, 0.8)
SUBJECT_STRENGTHS_STRONG = Strengths(0.5, 1.0)
MOTION_STRENGTHS = Strengths.from_value(1.0)
STRENGTH_PRESETS = {
    "paper": SUBJECT_STRENGTHS,
    "release": SUBJECT_STRENGTHS_RELEASE,
    "strong": SUBJECT_STRENGTHS_STRONG,
}
"""Strengths of the subject LoRA by the preset's name."""


@dataclass(frozen=True)
class TPoint:
    """Noise level at which the strengths switch: early above it, late at and below it.

    It is stored as a sigma because "step 15" is another noise level for every shift and step count; step 15
    of 50 at the authors' shift 1.0 is sigma 0.70.
    """

    sigma: float = 0.70

    @classmethod
    def from_step(cls, step: float, steps: int, shift: float = 1.0) -> "TPoint":
        """Convert a step of a reference run to a noise level; step 0 switches at once, step `steps` never.

        Raises ValueError for a step outside 0 to `steps`.
        """
        if not 0 <= step <= steps:
            raise ValueError(f"T_point is step {step} of {steps}; give a step from 0 to {steps}.")
        share = 1 - step / steps
        return cls(shift * share / (1 + (shift - 1) * share))

    def boundary(self, sigmas: Sequence[float]) -> float:
        """Return the noise level of this run at and below which the late strengths apply.

        The switch is at the run's own level nearest to T_point, so that rounding in a sampler's table never
        moves it by a step. A run that ends at 0 has at least one late step, and a run from pure noise at
        least one early step. For a part of a run that lies wholly on one side the result is -1 (all early) or
        inf (all late).
        """
        levels = [float(level) for level in sigmas]
        if self.sigma >= 1.0:
            return math.inf
        if self.sigma <= 0.0:
            return -1.0
        if self.sigma >= levels[0]:
            return math.inf
        if self.sigma < levels[-1]:
            return -1.0
        nearest = min(range(len(levels)), key=lambda i: abs(levels[i] - self.sigma))
        if levels[-1] == 0:
            nearest = min(nearest, len(levels) - 2)
        if levels[0] >= 0.999:
            nearest = max(nearest, 1)
        if nearest <= 0:
            return math.inf
        # One percent of the gap above the level, for samplers whose own sigma is off by float rounding.
        return levels[nearest] + 0.01 * (levels[nearest - 1] - levels[nearest])

    def estimate_boundary(self, sigmas: Sequence[float]) -> float:
        """Return `boundary`, or T_point with a margin for rounding where the run's levels are unknown."""
        return self.boundary(sigmas) if len(sigmas) else self.sigma * (1 + 1e-4)


def choose_strength(strengths: Strengths, sigma: float, boundary: float) -> float:
    """Return a LoRA's strength at one evaluation of the model; `boundary` comes from TPoint.boundary."""
    return strengths.late if sigma <= boundary else strengths.early


@dataclass(frozen=True)
class StrengthSchedule:
    """T_point and the strengths of both LoRAs, as one scheduler passes them to any number of LoRA loaders."""

    t_point: float = TPoint().sigma
    """A sigma, or with `as_share` the share of the steps before the switch."""
    as_share: bool = False
    """Whether `t_point` is a share of the steps."""
    subject: Strengths = SUBJECT_STRENGTHS
    motion: Strengths = MOTION_STRENGTHS

    def __post_init__(self):
        if not 0.0 <= self.t_point <= 1.0:
            raise ValueError(
                f"T_point is {self.t_point}; give a {'share' if self.as_share else 'sigma'} from 0 to 1."
            )

    def resolve(self, sigma_of_share: Callable[[float], float]) -> TPoint:
        """Return T_point as a noise level; a share is converted by the sampler's own table of noise levels.

        `sigma_of_share` returns the sigma that a run has reached after a share of its steps (ComfyUI's
        `percent_to_sigma`).
        """
        return TPoint(sigma_of_share(self.t_point) if self.as_share else self.t_point)


class ScheduledLora(NamedTuple):
    """A LoRA and its strengths before and after T_point."""

    lora: Lora
    strengths: Strengths


@contextmanager
def scheduled(
    linears: Mapping[str, nn.Module], loras: Sequence[ScheduledLora], t_point: TPoint, sigmas: Sequence[float]
) -> Iterator[Callable[[float], None]]:
    """Add LoRAs to a model for a sampling run over `sigmas`; afterwards the model is exactly as before.

    Yields the function that sets the strengths for an evaluation at a given sigma: call it before each
    evaluation of the model. Raises ValueError when a LoRA does not fit the linears.
    """
    injections = [Injection(lora, strengths.early) for lora, strengths in loras]
    boundary = t_point.boundary(sigmas)

    def set_strengths(sigma: float) -> None:
        for injection, (_, strengths) in zip(injections, loras, strict=True):
            injection.strength = choose_strength(strengths, sigma, boundary)

    with injected(linears, *injections):
        yield set_strengths


def count_early_steps(t_point: TPoint, sigmas: Sequence[float]) -> int:
    """Return the number of steps of this run that use the early strengths, from 0 to all."""
    boundary = t_point.boundary(sigmas)
    return sum(1 for sigma in sigmas[:-1] if sigma > boundary)


def describe_run(t_point: TPoint, sigmas: Sequence[float]) -> str:
    """Describe in one line where a run over these noise levels switches.

    For a run that stays on one side the line gives the reason: the two experts of Wan 2.2 each run over a
    part of the levels.
    """
    steps, first, last = len(sigmas) - 1, float(sigmas[0]), float(sigmas[-1])
    early = count_early_steps(t_point, sigmas)
    level = f"T_point at sigma {t_point.sigma:.2f}"
    if early == 0:
        reason = "lies at or below" if first <= t_point.sigma else "is the level nearest to"
        return f"no switch, late strengths throughout: the start at sigma {first:.3f} {reason} {level}"
    if early == steps:
        return f"no switch, early strengths throughout: the end at sigma {last:.3f} lies above {level}"
    return f"switch at step {early} of {steps}, sigma {float(sigmas[early]):.3f} ({level})"
