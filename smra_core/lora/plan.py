"""Sparse plan: which linears a LoRA is injected into, by role and block.

Paper section "Subject-Motion Association Decoupling". The same plan decides which linears get an adapter in
training, and which entries of a LoRA file are used in sampling. lora/schedule.py holds the strengths over
time.
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
        """Return whether the linear of this native name (`blocks.N.…`) belongs to the plan."""
        block, _, role = parse_linear(name)
        return role in self.roles and (self.blocks is None or self.blocks[0] <= block < self.blocks[1])

    def select(self, names: Iterable[str]) -> list[str]:
        """Select the names that belong to the plan, in the order given."""
        return [name for name in names if self.includes(name)]

    def __str__(self) -> str:
        roles = ",".join(role.value for role in Role if role in self.roles)
        return roles if self.blocks is None else f"{roles}@{self.blocks[0]}:{self.blocks[1]}"

    @classmethod
    def parse(cls, text: str) -> "SparsePlan":
        """Parse what str() writes, `q,k,ffn.0` or `q,k,ffn.0@0:15`, or the name of one of PLANS.

        Raises ValueError for unknown names and roles and for an empty block range.
        """
        if text in PLANS:
            return PLANS[text]
        roles, _, blocks = text.partition("@")
        try:
            role_set = frozenset(Role(role.strip()) for role in roles.split(","))
            block_range = tuple(int(edge) for edge in blocks.split(":")) if blocks else None
        except ValueError as error:
            raise ValueError(
                f"Plan {text!r} is not known. Give one of {sorted(PLANS)}, or roles such as 'q,k,ffn.0' "
                f"(of {[role.value for role in Role]}), with a block range such as 'q,k@0:15' if wanted."
            ) from error
        if block_range is not None and (len(block_range) != 2 or not 0 <= block_range[0] < block_range[1]):
            raise ValueError(
                f"Block range {blocks!r} of plan {text!r} is malformed; give first:last+1, e.g. 0:15."
            )
        return cls(role_set, block_range)


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
"""Plans by name: the paper's two plans and its ablations (table "Combination 1 to 3")."""
