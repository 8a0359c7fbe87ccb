"""A LoRA as chosen in the graph: read from the loras folder or a training node, and cut down to its "
"layers."""

from collections import Counter
from typing import NamedTuple

from ...smra_core.lora.adapter import Lora, restrict
from ...smra_core.lora.plan import ALL_LAYERS, MOTION, SUBJECT, SparsePlan
from ...smra_core.lora.reader import LoadedLora, load_lora, parse_lora
from ...smra_core.lora.schedule import Strengths
from ...smra_core.wan.spec import Role, parse_linear

NONE = "None"
PAPER, ALL, CUSTOM = "paper", "all", "custom"
LAYER_CHOICES = (PAPER, ALL, CUSTOM)
PAPER_PLANS = {"subject": SUBJECT, "motion": MOTION}
_SHOWN = 3


class ChosenLora(NamedTuple):
    purpose: str
    """`subject` or `motion`."""
    source: str
    loaded: LoadedLora
    plan: SparsePlan
    lora: Lora
    """The layers that belong to the plan."""


def layer_plan(purpose: str, choice: str, custom: str) -> SparsePlan:
    """The plan of a layers widget; ValueError when the custom text is malformed."""
    if choice == CUSTOM:
        return SparsePlan.parse(custom.strip())
    return ALL_LAYERS if choice == ALL else PAPER_PLANS[purpose]


def choose_lora(purpose: str, file_name: str, lora_model: dict | None, plan: SparsePlan) -> ChosenLora | None:
    """The LoRA of one slot; what a training node hands over goes before the file, None when neither is there.

    ValueError when the file cannot be used as it is, or the plan leaves nothing of it.
    """
    if lora_model is not None:
        source, loaded = "trained in this graph", parse_lora(lora_model, f"The {purpose} LORA_MODEL")
    elif file_name != NONE:
        import folder_paths

        source, loaded = file_name, load_lora(folder_paths.get_full_path_or_raise("loras", file_name))
    else:
        return None
    kept = restrict(loaded.lora, plan, f"the {purpose} LoRA {source!r}")
    return ChosenLora(purpose, source, loaded, plan, kept)


def describe_choice(chosen: ChosenLora, strengths: Strengths, merged: bool) -> list[str]:
    """What was matched and what not, as lines."""
    total, kept, ranks = len(chosen.loaded.lora), len(chosen.lora), sorted(_ranks(chosen.lora))
    size = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    lines = [
        f"{chosen.purpose}: {chosen.source} ({chosen.loaded.dialect} names), {kept} of {total} layers "
        f"[{chosen.plan}], rank {size}, strength {_strength_text(strengths)}, "
        f"{'merged' if merged else 'added on the fly'}"
    ]
    left_out = {name: pair for name, pair in chosen.loaded.lora.items() if name not in chosen.lora}
    if left_out:
        lines.append(f"  left out by the layer choice: {_roles(left_out)} ({total - kept} layers)")
    if chosen.loaded.ignored:
        shown = ", ".join(chosen.loaded.ignored[:_SHOWN])
        lines.append(f"  not used: {len(chosen.loaded.ignored)} tensors outside the blocks' linears: {shown}")
    role = chosen.loaded.metadata.purpose
    if role and role != chosen.purpose:
        lines.append(f"  note: the file says it is a {role} LoRA, but it is in the {chosen.purpose} slot")
    return lines


def _strength_text(strengths: Strengths) -> str:
    if strengths.early == strengths.late:
        return f"{strengths.early:.2f}"
    return f"{strengths.early:.2f}, then {strengths.late:.2f}"


def _ranks(lora: Lora) -> set[int]:
    return {pair.rank for pair in lora.values()}


def _roles(lora: Lora) -> str:
    present = Counter(parse_linear(name).role for name in lora)
    return ",".join(role.value for role in Role if present[role])
