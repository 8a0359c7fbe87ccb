"""A LoRA chosen in a loader node, restricted to the layers of its plan."""

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
    """A LoRA, where it comes from, and what is used of it."""

    purpose: str
    """`subject` or `motion`."""
    source: str
    """Name of the file, or where else it comes from."""
    loaded: LoadedLora
    plan: SparsePlan
    lora: Lora
    """The layers that belong to the plan."""


def choose_plan(purpose: str, choice: str, custom: str) -> SparsePlan:
    """Return the plan of a layers widget. Raises ValueError when the custom text is malformed."""
    if choice == CUSTOM:
        return SparsePlan.parse(custom.strip())
    return ALL_LAYERS if choice == ALL else PAPER_PLANS[purpose]


def choose_lora(purpose: str, file: str, lora_model: dict | None, plan: SparsePlan) -> ChosenLora | None:
    """Return the LoRA of one purpose, or None when neither a LORA_MODEL nor a file is given.

    The LoRA of a training node is used in place of the file. Raises ValueError when the file cannot be used
    as it is, or when the plan leaves nothing of it.
    """
    if lora_model is not None:
        source, loaded = "trained in this graph", parse_lora(lora_model, f"The {purpose} LORA_MODEL")
    elif file != NONE:
        import folder_paths

        source, loaded = file, load_lora(folder_paths.get_full_path_or_raise("loras", file))
    else:
        return None
    used_pairs = restrict(loaded.lora, plan, f"the {purpose} LoRA {source!r}")
    return ChosenLora(purpose, source, loaded, plan, used_pairs)


def describe_choice(chosen: ChosenLora, strengths: Strengths, merged: bool) -> list[str]:
    """Return lines that say what was used of a LoRA, how strong, and what was left out."""
    total, used, ranks = len(chosen.loaded.lora), len(chosen.lora), sorted(_collect_ranks(chosen.lora))
    size = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    lines = [
        f"{chosen.purpose}: {chosen.source} ({chosen.loaded.dialect} names), {used} of {total} layers "
        f"[{chosen.plan}], rank {size}, strength {_describe_strengths(strengths)}, "
        f"{'merged' if merged else 'added on the fly'}"
    ]
    left_out = {name: pair for name, pair in chosen.loaded.lora.items() if name not in chosen.lora}
    if left_out:
        lines.append(f"  left out by the layer choice: {_list_roles(left_out)} ({total - used} layers)")
    if chosen.loaded.ignored:
        shown = ", ".join(chosen.loaded.ignored[:_SHOWN])
        lines.append(f"  not used: {len(chosen.loaded.ignored)} tensors outside the blocks' linears: {shown}")
    role = chosen.loaded.metadata.purpose
    if role and role != chosen.purpose:
        lines.append(f"  note: the file says it is a {role} LoRA, but it is in the {chosen.purpose} slot")
    return lines


def _describe_strengths(strengths: Strengths) -> str:
    if strengths.early == strengths.late:
        return f"{strengths.early:.2f}"
    return f"{strengths.early:.2f}, then {strengths.late:.2f}"


def _collect_ranks(lora: Lora) -> set[int]:
    return {pair.rank for pair in lora.values()}


def _list_roles(lora: Lora) -> str:
    present = Counter(parse_linear(name).role for name in lora)
    return ",".join(role.value for role in Role if present[role])
