"""Choice between the experts of Wan 2.2 and between the adapters that one LoRA file may hold."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..storage.weight_check import join_names
from .account import name_unused_kind
from .dialects import EXPERTS, LoraKey, find_unknown_prefix, parse_key

RELEASE_ADAPTERS = {"subject": "spatial_lora", "motion": "temporal_lora"}
"""Names of the two adapters of the authors' release, by purpose; it may save both into one file."""


class ChosenKeys(NamedTuple):
    """Keys of a LoRA file that are used, and those that are not."""

    parsed: dict[str, LoraKey]
    """Meaning of each key that is used."""
    unused: list[tuple[str, str]]
    """Kind and name of each key that is not used."""
    expert: str | None
    """Expert that the prefixes of the used keys name."""
    notes: tuple[str, ...]
    """Sentences on the expert and the adapter, where the file names them."""


def choose_keys(
    names: Iterable[str], source: str, expert: str | None = None, adapter: str | None = None
) -> ChosenKeys:
    """Choose the keys of one expert and one adapter from the names in a LoRA file.

    `source` is the file's name in messages. Raises ValueError when no name is of a linear of a WAN block,
    when the file holds both experts or several adapters and none of them is asked for, and when it holds the
    other expert alone.
    """
    if expert not in (None, *EXPERTS):
        raise ValueError(f"Expert {expert!r} is not known; give one of {EXPERTS}.")
    parsed = {name: parse_key(name) for name in names}
    known = {name: key for name, key in parsed.items() if key is not None}
    if not known:
        raise _build_no_lora_error(list(parsed), source)
    experts = _describe_experts(known)
    expert_chosen = _choose_expert(experts, source, expert)
    of_expert = {name: key for name, key in known.items() if key.expert == expert_chosen}
    adapters = sorted({key.adapter for key in of_expert.values() if key.adapter is not None})
    adapter_chosen = _choose_adapter(adapters, source, adapter)
    used = {name: key for name, key in of_expert.items() if key.adapter in (None, adapter_chosen)}
    unused = [(_name_kind(name, parsed[name], expert_chosen), name) for name in parsed if name not in used]
    notes = []
    if len(experts) > 1:
        notes.append(f"The file holds two experts of Wan 2.2; used is {experts[expert_chosen]}.")
    elif expert_chosen is not None:
        notes.append(f"Its names are of one expert of Wan 2.2: {experts[expert_chosen]}.")
    if len(adapters) > 1:
        notes.append(f"The file holds the adapters {', '.join(adapters)[:400]}; used is {adapter_chosen}.")
    return ChosenKeys(used, unused, expert_chosen, tuple(notes))


def _describe_experts(known: Mapping[str, LoraKey]) -> dict[str | None, str]:
    """Return a description of each expert in a file, by its name; None is one that the file does not name."""
    examples: dict[str | None, str] = {}
    for name, key in known.items():
        examples.setdefault(key.expert, name)
    return {
        expert: f"the {'other' if expert is None else f'{expert}-noise'} expert ({name[:120]})"
        for expert, name in examples.items()
    }


def _choose_expert(experts: Mapping[str | None, str], source: str, expert: str | None) -> str | None:
    if expert is None and len(experts) == 1:
        return next(iter(experts))
    if expert is None:
        raise ValueError(
            f"{source} holds LoRAs of two experts of Wan 2.2: {' and '.join(experts.values())}. Say which is "
            "meant, 'high' or 'low': write that one into a file of its own with `python -m smra_core convert "
            "FILE NEW_FILE --expert low`."
        )
    if expert in experts:
        return expert
    if None in experts:
        return None  # the expert without a name is the one that is not named
    raise ValueError(
        f"{source} holds a LoRA of {next(iter(experts.values()))} of Wan 2.2 alone; one of the "
        f"{expert}-noise expert is asked for. Choose the file of that expert."
    )


def _choose_adapter(adapters: list[str], source: str, adapter: str | None) -> str | None:
    if len(adapters) < 2:
        return adapters[0] if adapters else None
    if adapter in adapters:
        return adapter
    raise ValueError(
        f"{source} holds {len(adapters)} adapters: {join_names(adapters)}. Say which is meant: write it "
        "into a file of its own with `python -m smra_core convert FILE NEW_FILE --adapter "
        f"{adapters[0][:120]}`."
    )


def _name_kind(name: str, key: LoraKey | None, expert: str | None) -> str:
    if key is None:
        return name_unused_kind(name)
    if key.expert != expert:
        return f"the {'other' if key.expert is None else f'{key.expert}-noise'} expert of Wan 2.2"
    return f"the adapter {key.adapter}"


def _build_no_lora_error(names: list[str], source: str) -> ValueError:
    prefixes = {prefix: name for name in names if (prefix := find_unknown_prefix(name)) is not None}
    if prefixes:
        prefix, name = next(iter(prefixes.items()))
        return ValueError(
            f"{source} has names of WAN blocks under an unknown prefix {prefix[:120]!r}, such as "
            f"{name[:120]}. Export the LoRA with ComfyUI's names, which begin with 'diffusion_model.blocks.'."
        )
    return ValueError(
        f"{source} has no LoRA of a WAN block. Its {len(names)} tensors look like: {join_names(names)}; "
        "needed are names such as 'diffusion_model.blocks.0.self_attn.q.lora_A.weight'. It is for "
        "another model, or no LoRA: choose another file."
    )
