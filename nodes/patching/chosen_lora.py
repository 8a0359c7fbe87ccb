"""A LoRA chosen in a loader node, restricted to the layers of its plan."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ...smra_core.lora.account import describe_use
from ...smra_core.lora.adapter import Lora, restrict
from ...smra_core.lora.applied_range import AS_TRAINED, EVERYWHERE, describe_gain
from ...smra_core.lora.choice import RELEASE_ADAPTERS
from ...smra_core.lora.further_layers import (
    NOTHING,
    FurtherLayers,
    describe_further_layers,
    match_further_layers,
)
from ...smra_core.lora.plan import ALL_LAYERS, MOTION, SUBJECT, SparsePlan
from ...smra_core.lora.reader import LoadedLora, load_lora, parse_lora
from ...smra_core.lora.scale import ADAPTER_CONFIG
from ...smra_core.lora.schedule import ScheduledLora, Strengths
from ...smra_core.wan.noise_range import WHOLE, NoiseRange
from ...smra_core.wan.spec import Role, parse_linear
from .layer_shapes import read_layer_shapes

NONE = "None"
PAPER, ALL, CUSTOM = "paper", "all", "custom"
LAYER_CHOICES = (PAPER, ALL, CUSTOM)
PAPER_PLANS = {"subject": SUBJECT, "motion": MOTION}


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
    further: FurtherLayers = NOTHING
    """Changes of other layers; a plan of all layers uses those that the model has."""

    @property
    def noise_range(self) -> NoiseRange:
        """Noise levels that the LoRA was trained at, as its file says."""
        return self.loaded.metadata.get_noise_range()

    def schedule(self, strengths: Strengths, applied: str = AS_TRAINED, expert: str | None = None):
        """Return the LoRA with strengths, and the noise levels that it is applied at (one of APPLIED_RANGES).

        `expert` is the expert of Wan 2.2 that it is for, where that is known: a LoRA that was trained for
        it is applied throughout, as the expert itself makes the range, and one of the other expert nowhere.
        """
        noise_range = self.noise_range if applied == AS_TRAINED else WHOLE
        if expert is not None and noise_range.expert is not None:
            strengths = strengths if noise_range.expert == expert else Strengths.from_value(0.0)
            noise_range = WHOLE
        return ScheduledLora(self.lora, strengths, noise_range)


def choose_plan(purpose: str, choice: str, custom: str) -> SparsePlan:
    """Return the plan of a layers widget. Raises ValueError when the custom text is malformed."""
    if choice == CUSTOM:
        return SparsePlan.parse(custom.strip())
    return ALL_LAYERS if choice == ALL else PAPER_PLANS[purpose]


def choose_lora(
    purpose: str, file: str, lora_model: dict | None, plan: SparsePlan, model, expert: str | None = None
) -> ChosenLora | None:
    """Return the LoRA of one purpose for a MODEL, or None when neither a LORA_MODEL nor a file is given.

    The LoRA of a training node is used in place of the file. Of a file that holds both adapters of the
    authors' release, the one of this purpose is read; of one that holds both experts of Wan 2.2, the
    `expert`. Raises ValueError when the file cannot be used as it is, or when the plan leaves nothing of it.
    """
    choice = {"expert": expert, "adapter": RELEASE_ADAPTERS[purpose], "log_unused": plan != ALL_LAYERS}
    if lora_model is not None:
        source = "trained in this graph"
        about = getattr(lora_model, "metadata", None)
        loaded = parse_lora(lora_model, f"The {purpose} LORA_MODEL", about, **choice)
    elif file != NONE:
        import folder_paths

        source = file
        loaded = load_lora(folder_paths.get_full_path_or_raise("loras", file), **choice)
    else:
        return None
    used_pairs = restrict(loaded.lora, plan, f"the {purpose} LoRA {source!r}")
    further = NOTHING
    if plan == ALL_LAYERS and loaded.further.tensors:
        further = match_further_layers(loaded.further, read_layer_shapes(model))
    return ChosenLora(purpose, source, loaded, plan, used_pairs, further)


def read_file_state(file: str | None) -> str:
    """Return size and time of a LoRA file and of a PEFT configuration beside it, which change when they do.

    ComfyUI compares this text before it takes a node's outputs from its cache. It is empty where no file is
    chosen, or where another node gives its name, which ComfyUI does not tell before that node has run.
    """
    import folder_paths

    path = folder_paths.get_full_path("loras", file) if file and file != NONE else None
    if path is None:
        return ""
    beside = Path(path).with_name(ADAPTER_CONFIG)
    stats = [each.stat() for each in (Path(path), beside) if each.is_file()]
    return " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)


def describe_choice(chosen: ChosenLora, used_as: ScheduledLora, merged: float) -> list[str]:
    """Return lines that say what was used of a LoRA, how strong, at which noise levels, and what was left
    out.

    `merged` is the strength at which it was merged into the weights.
    """
    total, used, ranks = len(chosen.loaded.lora), len(chosen.lora), sorted(_collect_ranks(chosen.lora))
    size = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    lines = [
        f"{chosen.purpose}: {chosen.source} ({chosen.loaded.dialect} names), {used} of {total} layers "
        f"[{chosen.plan}], rank {size}, strength {_describe_strengths(used_as.strengths)}, "
        f"{_describe_way(used_as.strengths, merged)}"
    ]
    left_out = {name: pair for name, pair in chosen.loaded.lora.items() if name not in chosen.lora}
    if left_out:
        lines.append(f"  left out by the layer choice: {_list_roles(left_out)} ({total - used} layers)")
    if not chosen.noise_range.is_whole:
        lines.append(f"  {_describe_noise_range(chosen, used_as)}")
    lines += [f"  {sentence}" for sentence in (*_describe_further(chosen), *chosen.loaded.notes)]
    role = chosen.loaded.metadata.purpose
    if role and role != chosen.purpose:
        lines.append(f"  note: the file says it is a {role} LoRA, but it is in the {chosen.purpose} slot")
    return lines


def _describe_noise_range(chosen: ChosenLora, used_as: ScheduledLora) -> str:
    trained = chosen.noise_range
    if used_as.noise_range == trained:
        where = "applied there alone, with strength 0 at other noise levels"
        if trained.expert is not None:
            where += "; a sampler whose steps are mostly at these levels has it in all of them"
        gain = describe_gain(chosen.purpose, trained, f"noise_range '{EVERYWHERE}' of SMRA Loader Options")
        where += f". {gain}" if gain else ""
    elif used_as.strengths == Strengths.from_value(0.0):
        where = "not applied here"
    else:
        where = "applied at all noise levels of this model"
    return f"trained at the noise range {trained}: {where}"


def _describe_further(chosen: ChosenLora) -> list[str]:
    """Return sentences on how much of the file is used, and what of other layers."""
    loaded, further = chosen.loaded, chosen.further
    if not further.used:
        return [loaded.account]
    unused = [(kind, name) for kind, name in loaded.unused if name not in further.used]
    return [
        describe_further_layers(further),
        describe_use(loaded.used + len(further.used), len(loaded.lora), unused, further.count_layers()),
    ]


def _describe_strengths(strengths: Strengths) -> str:
    if strengths.early == strengths.late:
        return f"{strengths.early:.2f}"
    return f"{strengths.early:.2f}, then {strengths.late:.2f}"


def _describe_way(strengths: Strengths, merged: float) -> str:
    if not merged:
        return "added on the fly"
    if strengths.early == strengths.late:
        return "merged"
    return f"merged at {merged:.2f}, the difference before T_point added on the fly"


def _collect_ranks(lora: Lora) -> set[int]:
    return {pair.rank for pair in lora.values()}


def _list_roles(lora: Lora) -> str:
    present = Counter(parse_linear(name).role for name in lora)
    return ",".join(role.value for role in Role if present[role])
