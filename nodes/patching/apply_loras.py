"""Apply LoRAs with a schedule to a MODEL: what of their strengths is constant is merged into the weights, the
rest is added while sampling.
"""

from collections.abc import Iterable, Sequence, Sized
from typing import NamedTuple

import torch
from torch import Tensor

from ...smra_core.lora.adapter import check_fit
from ...smra_core.lora.further_layers import NOTHING, FurtherLayers
from ...smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from .call_time_swap import PREFIX, CallTimeSwap, ScheduledChanges
from .fused_linears import refuse_fused_linears
from .layer_shapes import read_linear_shapes

AUTO, MERGE, ON_THE_FLY = "auto", "merge", "on the fly"
CONSTANT_MODES = (AUTO, MERGE, ON_THE_FLY)
OFF = Strengths.from_value(0.0)
_KEY = "smra_sparse_lora_"
_MERGEABLE = (torch.float32, torch.bfloat16, torch.float16)


class Applied(NamedTuple):
    """A MODEL with LoRAs, and how they were applied."""

    model: object
    """Clone of the MODEL that was given."""
    merged: tuple[float, ...]
    """Strength at which each LoRA was merged into the weights; the rest is added while sampling."""


def apply_loras(
    model,
    loras: Sequence[ScheduledLora],
    schedule: StrengthSchedule,
    constant: str = AUTO,
    further: Sequence[FurtherLayers] = (),
) -> Applied:
    """Return a clone of a MODEL with these LoRAs; the given one stays unchanged.

    A LoRA is merged at its late strength as ComfyUI's own loader does, so that only what the early strength
    differs by is added while sampling, before T_point. On checkpoints of less than 16 bits `auto` adds all of
    it while sampling, because merging would round the weights again; so it is with a LoRA that is applied at
    a part of the noise levels. `further` holds for each LoRA what its file changes of other layers, matched
    with the model already. Raises ValueError when a LoRA does not fit the model.
    """
    shapes = read_linear_shapes(model)
    for lora in (one.lora for one in loras):
        missing = [name for name in lora if name not in shapes]
        refuse_fused_linears(getattr(model.model.diffusion_model, "blocks", ()), missing)
        check_fit(shapes, lora, model="this model")
    clone, changes = model.clone(), []
    merged = [_merge(clone, one, constant) for one in loras]
    rest = [_subtract(one, value) for one, value in zip(loras, merged, strict=True)]
    for one, layers in zip(loras, further or [NOTHING] * len(loras), strict=True):
        pairs = one._replace(lora=layers.pairs)
        rest.append(_subtract(pairs, _merge(clone, pairs, constant)))
        value = _merge_changes(clone, layers.changes, one, constant)
        changes.append(ScheduledChanges(layers.changes, _subtract(one, value)))
    rest = [one for one in rest if one.lora and one.strengths != OFF]
    changes = [one for one in changes if one.changes and one.schedule.strengths != OFF]
    if rest or changes:
        _add_swap(clone, rest, changes, schedule)
    return Applied(clone, tuple(merged))


def at_constant_strength(loras: Sequence[ScheduledLora], side: str) -> list[ScheduledLora]:
    """Return the same LoRAs with their `early` or `late` strength throughout."""
    return [one._replace(strengths=Strengths.from_value(getattr(one.strengths, side))) for one in loras]


def _choose_merged_strength(model, names: Iterable[str], one: ScheduledLora, constant: str) -> float:
    """Return the strength at which a LoRA of these layers is merged: the late one, as most steps are late.

    It is 0 for a LoRA that begins at 0: the early steps then are those of the plain model, bit for bit.
    """
    if one.strengths.early == 0 or not one.noise_range.is_whole or constant == ON_THE_FLY:
        return 0.0
    if constant == MERGE and one.is_constant():
        return one.strengths.late
    plain = all(_holds_plain_numbers(model.model.get_submodule(PREFIX + name)) for name in names)
    return one.strengths.late if plain else 0.0


def _subtract(one: ScheduledLora, merged: float) -> ScheduledLora:
    """Return a LoRA with the strengths that are left to be added while sampling."""
    return one._replace(strengths=Strengths(one.strengths.early - merged, one.strengths.late - merged))


def _holds_plain_numbers(linear) -> bool:
    """Whether the weight is a normal 16- or 32-bit tensor: no fp8, no packed or quantized kind."""
    weight = getattr(linear, "weight", None)
    return type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.dtype in _MERGEABLE


def _merge(model, one: ScheduledLora, constant: str) -> float:
    """Add a LoRA to the model's weight patches, as ComfyUI's own loader does, where it may be merged; return
    the strength.
    """
    import comfy.lora

    strength, named = _choose_merged_strength(model, one.lora, one, constant), {}
    if strength == 0:
        return 0.0
    for name, pair in one.lora.items():
        named[f"{PREFIX}{name}.lora_A.weight"] = pair.a.detach()
        named[f"{PREFIX}{name}.lora_B.weight"] = pair.scale * pair.b.detach()
    patches = comfy.lora.load_lora(named, comfy.lora.model_lora_keys_unet(model.model, {}))
    _check_merged(model.add_patches(patches, strength), one.lora)
    return strength


def _merge_changes(model, changes: dict[str, Tensor], one: ScheduledLora, constant: str) -> float:
    """Do the same with changes of whole parameters, which have the strengths of a LoRA."""
    layers = {name.rpartition(".")[0] for name in changes}
    strength = _choose_merged_strength(model, layers, one, constant)
    if strength != 0:
        patches = {PREFIX + name: ("diff", (change,)) for name, change in changes.items()}
        _check_merged(model.add_patches(patches, strength), patches)
    return strength


def _check_merged(merged: Sequence[str], wanted: Sized) -> None:
    if len(merged) != len(wanted):
        raise ValueError(
            f"ComfyUI merged {len(merged)} of the LoRA's {len(wanted)} layers into this checkpoint. Set "
            f"constant_lora to '{ON_THE_FLY}' in SMRA Loader Options."
        )


def _add_swap(
    model,
    loras: Sequence[ScheduledLora],
    changes: Sequence[ScheduledChanges],
    schedule: StrengthSchedule,
) -> None:
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    swap = CallTimeSwap(
        loras,
        lambda base: schedule.resolve(base.model_sampling.percent_to_sigma),
        changes,
        schedule.when_settled,
    )
    # A key of its own, because two loaders in a row must not replace one another; and the same one in every
    # run, because a compiled model has it in its guards and would be compiled again for each loader.
    present = model.wrappers.get(WrappersMP.APPLY_MODEL, {})
    key = f"{_KEY}{sum(1 for name in present if str(name).startswith(_KEY))}"
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, swap)
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, swap.release)
