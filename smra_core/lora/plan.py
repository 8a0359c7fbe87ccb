"""Sparse injection: which linears a LoRA may touch (SparsePlan) and how strong it is at a noise level
(TPoint).

Paper section "Subject-Motion Association Decoupling". A plan answers two questions with one rule: which
linears get an adapter in training, and which entries of a LoRA file are used when sampling.
"""

from collections.abc import Iterable
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
