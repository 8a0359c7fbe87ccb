"""Apply LoRAs with a schedule to a MODEL: constant strengths are merged, changing ones are added while
sampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...smra_core.lora.adapter import Lora, check_fit
from ...smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from ...smra_core.wan.spec import Role
from .call_time_swap import PREFIX, CallTimeSwap
from .fused_linears import refuse_fused_linears

AUTO, MERGE, ON_THE_FLY = "auto", "merge", "on the fly"
CONSTANT_MODES = (AUTO, MERGE, ON_THE_FLY)
_KEY = "smra_sparse_lora_"
_MERGEABLE = (torch.float32, torch.bfloat16, torch.float16)


class Applied(NamedTuple):
    """A MODEL with LoRAs, and how they were applied."""

    model: object
    """Clone of the MODEL that was given."""
    merged: tuple[bool, ...]
    """Whether each LoRA was merged into the weights; otherwise it is added while sampling."""


def apply_loras(
    model, loras: Sequence[ScheduledLora], schedule: StrengthSchedule, constant: str = AUTO
) -> Applied:
    """Return a clone of a MODEL with these LoRAs; the given one stays unchanged.

    A LoRA of one strength at all noise levels is merged as ComfyUI's own loader does; on checkpoints of less
    than 16 bits `auto` adds it while sampling, because merging would round the weights again. Raises
    ValueError when a LoRA does not fit the model.
    """
    shapes = _read_linear_shapes(model)
    for lora in (one.lora for one in loras):
        missing = [name for name in lora if name not in shapes]
        refuse_fused_linears(getattr(model.model.diffusion_model, "blocks", ()), missing)
        check_fit(shapes, lora, model="this model")
    merged = tuple(_is_merged(model, one, constant) for one in loras)
    clone = model.clone()
    for one, into_weights in zip(loras, merged, strict=True):
        if into_weights and one.strengths.early != 0:
            _merge(clone, one.lora, one.strengths.early)
    swapped = [lora for lora, into_weights in zip(loras, merged, strict=True) if not into_weights]
    swapped = [item for item in swapped if item.strengths != Strengths.from_value(0.0)]
    if swapped:
        _add_swap(clone, swapped, schedule)
    return Applied(clone, merged)


def at_constant_strength(loras: Sequence[ScheduledLora], side: str) -> list[ScheduledLora]:
    """Return the same LoRAs with their `early` or `late` strength throughout."""
    return [one._replace(strengths=Strengths.from_value(getattr(one.strengths, side))) for one in loras]


def _read_linear_shapes(model) -> dict[str, tuple[int, int]]:
    """Return (out, in) features of the linears of a MODEL that can carry a LoRA, by native name."""
    blocks = getattr(model.model.diffusion_model, "blocks", ())
    shapes = {}
    for index, block in enumerate(blocks):
        for path in (path for role in Role for path in role.paths):
            linear = _find_submodule(block, path)
            if linear is not None:
                shapes[f"blocks.{index}.{path}"] = linear.out_features, linear.in_features
    return shapes


def _find_submodule(block, path: str):
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None


def _is_merged(model, one: ScheduledLora, constant: str) -> bool:
    if not one.is_constant() or constant == ON_THE_FLY:
        return False
    return constant == MERGE or all(
        _holds_plain_numbers(model.model.get_submodule(PREFIX + name)) for name in one.lora
    )


def _holds_plain_numbers(linear) -> bool:
    """Whether the weight is a normal 16- or 32-bit tensor: no fp8, no packed or quantized kind."""
    weight = getattr(linear, "weight", None)
    return type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.dtype in _MERGEABLE


def _merge(model, lora: Lora, strength: float) -> None:
    """Add a LoRA to the model's weight patches, as ComfyUI's own loader does."""
    import comfy.lora

    named = {}
    for name, pair in lora.items():
        named[f"{PREFIX}{name}.lora_A.weight"] = pair.a.detach()
        named[f"{PREFIX}{name}.lora_B.weight"] = pair.scale * pair.b.detach()
    patches = comfy.lora.load_lora(named, comfy.lora.model_lora_keys_unet(model.model, {}))
    merged = model.add_patches(patches, strength)
    if len(merged) != len(lora):
        raise ValueError(
            f"ComfyUI merged {len(merged)} of the LoRA's {len(lora)} layers into this checkpoint. Set "
            f"constant_lora to '{ON_THE_FLY}' in SMRA Loader Options."
        )


def _add_swap(model, loras: Sequence[ScheduledLora], schedule: StrengthSchedule) -> None:
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    swap = CallTimeSwap(loras, lambda base: schedule.resolve(base.model_sampling.percent_to_sigma))
    # A key of its own, because two loaders in a row must not replace one another; and the same one in every
    # run, because a compiled model has it in its guards and would be compiled again for each loader.
    present = model.wrappers.get(WrappersMP.APPLY_MODEL, {})
    key = f"{_KEY}{sum(1 for name in present if str(name).startswith(_KEY))}"
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, swap)
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, swap.release)
