"""Sparse injection: which linears a LoRA may touch (SparsePlan) and how strong it is at a noise level
(TPointSchedule).

Paper section "Subject-Motion Association Decoupling". A plan answers two questions with one rule: which
linears get an adapter in training, and which entries of a LoRA file are used when sampling.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..wan.spec import Role, parse_linear

ALL_ROLES = frozenset(Role)


@dataclass(frozen=True)
class SparsePlan:
    """Roles, and optionally a half-open range of blocks, that a LoRA is injected into."""

    roles: frozenset[Role]
    blocks: tuple[int, int] | None = None

    def includes(self, name: str) -> bool:
        """Whether the linear of this native name (`blocks.N.…`) belongs to the plan."""
        block, _, role = parse_linear(name)
        return role in self.roles and (self.blocks is None or self.blocks[0] <= block < self.blocks[1])

    def select(self, names: Iterable[str]) -> list[str]:
        """Names that belong to the plan, in the order given."""
        return [name for name in names if self.includes(name)]

    def __str__(self) -> str:
        roles = ",".join(role.value for role in Role if role in self.roles)
        return roles if self.blocks is None else f"{roles}@{self.blocks[0]}:{self.blocks[1]}"

    @classmethod
    def parse(cls, text: str) -> "SparsePlan":
        """Inverse of str(): `q,k,ffn.0` or `q,k,ffn.0@0:15`, or the name of one of PLANS."""
        if text in PLANS:
            return PLANS[text]
        roles, _, blocks = text.partition("@")
        try:
            chosen = frozenset(Role(role.strip()) for role in roles.split(","))
            span = tuple(int(edge) for edge in blocks.split(":")) if blocks else None
        except ValueError as error:
            raise ValueError(
                f"Plan {text!r} is not known. Give one of {sorted(PLANS)}, or roles such as 'q,k,ffn.0' "
                f"(of {[role.value for role in Role]}), with a block range such as 'q,k@0:15' if wanted."
            ) from error
        if span is not None and (len(span) != 2 or not 0 <= span[0] < span[1]):
            raise ValueError(
                f"Block range {blocks!r} of plan {text!r} is malformed; give first:last+1, e.g. 0:15."
            )
        return cls(chosen, span)


SUBJECT = SparsePlan(frozenset({Role.Q, Role.K, Role.FFN_0}))
MOTION = SparsePlan(frozenset({Role.V, Role.O, Role.FFN_0, Role.FFN_2}))
ALL_LAYERS = SparsePlan(ALL_ROLES)
SUBJECT_WITHOUT_FFN_0 = SparsePlan(SUBJECT.roles - {Role.FFN_0})
MOTION_WITHOUT_FFN_0 = SparsePlan(MOTION.roles - {Role.FFN_0})

PLANS = {
    "subject": SUBJECT,
    "motion": MOTION,
    "all-layers": ALL_LAYERS,
    "subject-without-ffn0": SUBJECT_WITHOUT_FFN_0,
    "motion-without-ffn0": MOTION_WITHOUT_FFN_0,
}
"""The paper's two plans and its ablations (table "Combination 1 to 3")."""


@dataclass(frozen=True)
class Strengths:
    """How strong a LoRA is before and after T_point; the plain LoRA has both the same."""

    early: float
    late: float

    @classmethod
    def constant(cls, value: float) -> "Strengths":
        return cls(value, value)


# The paper says "doubled" and gives no numbers; the authors' release ends at 0.8. Doubling up to 0.8 keeps
# both.
SUBJECT_STRENGTHS = Strengths(0.4, 0.8)
SUBJECT_STRENGTHS_RELEASE = Strengths(0.6, 0.8)
SUBJECT_STRENGTHS_STRONG = Strengths(0.5, 1.0)
MOTION_STRENGTHS = Strengths.constant(1.0)
STRENGTH_PRESETS = {
    "paper": SUBJECT_STRENGTHS,
    "release": SUBJECT_STRENGTHS_RELEASE,
    "strong": SUBJECT_STRENGTHS_STRONG,
}


@dataclass(frozen=True)
class TPointSchedule:
    """The noise level at which the strengths switch: above it early, at and below it late.

    Stored as a sigma because "step 15" means another noise level under every shift and step count; step 15 of
    50 at the authors' shift 1.0 is sigma 0.70.
    """

    sigma: float = 0.70

    @classmethod
    def from_step(cls, step: int, steps: int, shift: float = 1.0) -> "TPointSchedule":
        """T_point given as a step of a reference run; 0 switches at once, `steps` never."""
        if not 0 <= step <= steps:
            raise ValueError(f"T_point is step {step} of {steps}; give a step from 0 to {steps}.")
        share = 1 - step / steps
        return cls(shift * share / (1 + (shift - 1) * share))

    def boundary(self, sigmas: Sequence[float]) -> float:
        """The noise level of this run at and below which the late strengths hold.

        The switch falls on the run's own level nearest to T_point, so that rounding in a sampler's table
        never moves it by a step. A finished run keeps at least one late step and a run from pure noise one
        early step; a part of a run that lies wholly on one side is wholly early (-1) or late (inf).
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
        # One per cent of the gap above the level, for samplers whose own sigma is off by float rounding.
        return levels[nearest] + 0.01 * (levels[nearest - 1] - levels[nearest])

    def strength(self, strengths: Strengths, sigma: float, sigmas: Sequence[float]) -> float:
        """Strength of a LoRA at one evaluation of the model, in a run over these noise levels."""
        return strengths.late if sigma <= self.boundary(sigmas) else strengths.early
