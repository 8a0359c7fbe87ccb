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

from ..wan.noise_range import WHOLE, NoiseRange
from .adapter import Injection, Lora, injected
from .applied_range import is_applied
from .settled_switch import SettledSwitch


@dataclass(frozen=True)
class Strengths:
    """Strengths of a LoRA before and after T_point; a plain LoRA has the same strength on both sides."""

    early: float
    """Strength above T_point, at high noise."""
    late: float
    """Strength at and below T_point."""

    def __post_init__(self):
        if not (math.isfinite(self.early) and math.isfinite(self.late)):
            raise ValueError(
                f"The strengths of a LoRA are {self.early} before T_point and {self.late} after it; give two "
                "finite numbers, such as 0.4 and 0.8."
            )

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

    def __post_init__(self):
        if not 0.0 <= self.sigma <= 1.0:
            raise ValueError(
                f"T_point is {self.sigma}; give a sigma from 0 to 1, or a step of a run as 15/50."
            )

    @classmethod
    def from_step(cls, step: float, steps: int, shift: float = 1.0) -> "TPoint":
        """Convert a step of a reference run to a noise level; step 0 switches at once, step `steps` never.

        Raises ValueError for a step outside 0 to `steps`, for a run without steps, and for a shift that is
        not above 0.
        """
        if not 0 < steps < math.inf:
            raise ValueError(f"T_point is step {step} of {steps}; give a run of at least 1 step, as 15/50.")
        if not 0 <= step <= steps:
            raise ValueError(f"T_point is step {step} of {steps}; give a step from 0 to {steps}.")
        if not 0 < shift < math.inf:
            raise ValueError(f"T_point has shift {shift}; give a finite shift above 0, such as 5.")
        share = 1 - step / steps
        return cls(shift * share / (1 + (shift - 1) * share))

    def boundary(self, sigmas: Sequence[float]) -> float:
        """Return the noise level of this run at and below which the late strengths apply.

        The switch is at the run's own level nearest to T_point, so that rounding in a sampler's table never
        moves it by a step. A run that holds 0 has at least one late level, and a run that holds pure noise at
        least one early level. For a part of a run that lies wholly on one side the result is -1 (all early)
        or inf (all late).

        The order of the levels does not matter, and neither do repeated ones: runs that rise (unsampling,
        FlipSigmas), that jump up first (resampling) or that are padded with zeros at the end have the
        boundary that the same levels have when sorted from high to low.
        """
        if self.sigma >= 1.0:
            return math.inf
        if self.sigma <= 0.0:
            return -1.0
        levels = sorted({float(level) for level in sigmas}, reverse=True)
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
    at_hand_over: bool = False
    """Whether T_point is where the two experts of Wan 2.2 hand over: each of them then has one strength."""
    when_settled: bool = False
    """Whether the run switches by itself, where its motion has settled (settled_switch.py); `t_point` is then
    for samplers that do not tell the noise levels of the run.
    """

    def __post_init__(self):
        if not 0.0 <= self.t_point <= 1.0:
            raise ValueError(
                f"T_point is {self.t_point}; give a {'share' if self.as_share else 'sigma'} from 0 to 1."
            )

    def resolve(self, sigma_of_share: Callable[[float], float]) -> TPoint:
        """Return T_point as a noise level; a share is converted by the sampler's own table of noise levels.

        `sigma_of_share` returns the sigma that a run has reached after a share of its steps (ComfyUI's
        `percent_to_sigma`). What lies outside 0 to 1, as the tables of other kinds of model do, is cut to it.
        """
        if not self.as_share:
            return TPoint(self.t_point)
        return TPoint(min(max(float(sigma_of_share(self.t_point)), 0.0), 1.0))


class ScheduledLora(NamedTuple):
    """A LoRA, its strengths before and after T_point, and the noise levels that it is applied at."""

    lora: Lora
    strengths: Strengths
    noise_range: NoiseRange = WHOLE
    """Range outside of which the strength is 0."""

    def is_constant(self) -> bool:
        """Return whether the strength is the same at every noise level."""
        is_off = self.strengths == Strengths.from_value(0.0)
        return is_off or (self.noise_range.is_whole and self.strengths.early == self.strengths.late)

    def get_strength(self, sigma: float, boundary: float, sigmas: Sequence[float]) -> float:
        """Return the strength at one evaluation of the model, in a run over `sigmas` (none if they are not
        known); `boundary` comes from TPoint.boundary.
        """
        if not is_applied(self.noise_range, sigma, sigmas):
            return 0.0
        return choose_strength(self.strengths, sigma, boundary)


@contextmanager
def scheduled(
    linears: Mapping[str, nn.Module],
    loras: Sequence[ScheduledLora],
    t_point: TPoint | SettledSwitch,
    sigmas: Sequence[float],
) -> Iterator[Callable[[float], None]]:
    """Add LoRAs to a model for a sampling run over `sigmas`; afterwards the model is exactly as before.

    Yields the function that sets the strengths for an evaluation at a given sigma: call it before each
    evaluation of the model. A `SettledSwitch` must be shown each prediction. Raises ValueError when a LoRA
    does not fit the linears.
    """
    injections = [Injection(one.lora, one.strengths.early) for one in loras]
    fixed = t_point.boundary(sigmas) if isinstance(t_point, TPoint) else None

    def set_strengths(sigma: float) -> None:
        boundary = t_point.find_boundary(sigmas) if fixed is None else fixed
        for injection, one in zip(injections, loras, strict=True):
            injection.strength = one.get_strength(sigma, boundary, sigmas)

    with injected(linears, *injections):
        yield set_strengths


def count_early_steps(t_point: TPoint, sigmas: Sequence[float]) -> int:
    """Return the number of steps of this run that use the early strengths, from 0 to all.

    In a run whose noise levels fall these are the first steps; `find_early_steps` tells which they are in any
    other order.
    """
    return sum(find_early_steps(t_point, sigmas))


def find_early_steps(t_point: TPoint, sigmas: Sequence[float]) -> list[bool]:
    """Return for each step of this run whether it uses the early strengths.

    A run over n levels has n - 1 steps; each step evaluates the model at its first level.
    """
    boundary = t_point.boundary(sigmas)
    return [float(sigma) > boundary for sigma in sigmas[:-1]]


def describe_run(t_point: TPoint, sigmas: Sequence[float]) -> str:
    """Describe in one line where a run over these noise levels switches.

    For a run that stays on one side the line gives the reason: the two experts of Wan 2.2 each run over a
    part of the levels. For a run that uses the early strengths elsewhere than in its first steps, as its
    noise levels do not fall, the line says in which steps.
    """
    levels = [float(sigma) for sigma in sigmas]
    is_early = find_early_steps(t_point, levels)
    steps, early = len(is_early), sum(is_early)
    level = f"T_point at sigma {t_point.sigma:.2f}"
    falls = all(sigma >= following for sigma, following in zip(levels, levels[1:], strict=False))
    if early == 0:
        start, first = ("start", levels[0]) if falls else ("highest level", max(levels))
        reason = "lies at or below" if first <= t_point.sigma else "is the level nearest to"
        return f"no switch, late strengths throughout: the {start} at sigma {first:.3f} {reason} {level}"
    if early == steps:
        end, last = ("end", levels[-1]) if falls else ("lowest level", min(levels))
        reason = "lies above" if last > t_point.sigma else "is the level nearest to"
        return f"no switch, early strengths throughout: the {end} at sigma {last:.3f} {reason} {level}"
    if all(is_early[:early]):
        return f"switch at step {early} of {steps}, sigma {levels[early]:.3f} ({level})"
    return (
        f"early strengths in {_list_steps(is_early)} of {steps}, counted from 1, and late strengths in the "
        f"others: the noise levels do not fall from step to step ({level})"
    )


def _list_steps(chosen: Sequence[bool]) -> str:
    """Return the chosen steps, counted from 1, as text such as `steps 2 to 7, 9`."""
    ranges: list[list[int]] = []
    for step in (index for index, is_chosen in enumerate(chosen, start=1) if is_chosen):
        if ranges and ranges[-1][1] == step - 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in ranges]
    return ("step " if sum(chosen) == 1 else "steps ") + ", ".join(texts)
