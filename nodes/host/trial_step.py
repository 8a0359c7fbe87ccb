"""Whether a MODEL can be trained: a step on a copy that has no values, before anything is encoded or loaded.

The copy's tensors have shapes alone (torch's meta device). ComfyUI's code of the variant runs forward and
backward on them as in training, which takes no memory and about a tenth of a second for each block.
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ...smra_core.lora.adapter import Injection, init_lora, injected, replaced_forwards
from ...smra_core.lora.plan import SparsePlan
from ...smra_core.wan.condition import ExtraInputs, list_parts, move_inputs, stack_inputs
from .denoiser import HostDenoiser, read_spec
from .versions import training_mode

log = logging.getLogger("smrabooth")

META = torch.device("meta")
_OVERWRITTEN = "modified by an inplace operation"
"""Words of torch's error where a value that the backward pass needs was overwritten."""
_passed: set[Hashable] = set()
"""Kinds of models and inputs that a step was possible with; the same need not be tried again."""


def check_training_step(
    model,
    plan: SparsePlan,
    context: Tensor,
    shape: Sequence[int],
    inputs: ExtraInputs,
    token_block: int | None = None,
) -> None:
    """Raise ValueError, with the variant's name and the reason, if no gradient comes through a MODEL.

    `context` is `T 4096`, `shape` that of latents `C f h w`, and `inputs` are what the model takes besides.
    `token_block` is the block whose tokens SuRA aligns, or None. Without further inputs nothing is tried: the
    model is then WAN's own text to video. What cannot be run without values is left to training itself.
    """
    net = model.model.diffusion_model
    names = tuple(name for name, _ in list_parts(inputs))
    kind = (type(net), read_spec(model), str(plan), names, token_block)
    if not inputs or kind in _passed:
        return
    try:
        take_valueless_step(model, plan, context, shape, inputs, token_block)
    except ValueError:  # of this pack, about the tokens
        raise
    except Exception as error:
        told = explain_overwriting(model, error)
        if told is not None:
            raise ValueError(told) from error
        log.info("A step of %s cannot be tried without values (%s).", type(net).__name__, error)
    else:
        _passed.add(kind)


def explain_overwriting(model, error: Exception) -> str | None:
    """Return why a MODEL cannot be trained where its own code overwrites what a gradient needs, else None."""
    if _OVERWRITTEN not in str(error):
        return None
    kind = type(model.model.diffusion_model).__name__
    return (
        f"This MODEL is {kind}, and ComfyUI's code of this variant of WAN overwrites values that a gradient "
        f"needs, so that it cannot be trained ({type(error).__name__}: {error}). Train the LoRA on a "
        "text-to-video or image-to-video WAN of the same size, and apply it to this MODEL."
    )


def take_valueless_step(
    model,
    plan: SparsePlan,
    context: Tensor,
    shape: Sequence[int],
    inputs: ExtraInputs,
    token_block: int | None = None,
) -> None:
    """Run forward and backward on a copy without values (see `check_training_step`), and raise as they do."""
    denoiser = _ValuelessDenoiser(model)
    lora = init_lora(denoiser.spec, plan, rank=1, generator=torch.Generator())
    for pair in lora.values():
        pair.to(META)
    extra = stack_inputs([move_inputs(inputs, META)])
    noisy, sigma = torch.empty(1, *shape, device=META), torch.empty(1, device=META)
    with (
        training_mode(),
        replaced_forwards(denoiser.make_forwards().items()),
        injected(denoiser.linears(), Injection(lora)),
    ):
        velocity, tokens = denoiser.velocity(noisy, sigma, context[None].to(META), token_block, extra)
        (velocity.sum() if tokens is None else velocity.sum() + tokens.sum()).backward()


class _ValuelessDenoiser(HostDenoiser):
    """The denoiser of a copy, of which nothing can be loaded."""

    def __init__(self, model):
        copied = SimpleNamespace(
            model=copy_without_values(model.model),
            model_options=model.model_options,
            get_model_object=model.get_model_object,
            load_device=META,
        )
        super().__init__(copied, read_spec(model), torch.float32)

    def _reload_if_needed(self) -> None:
        pass


def copy_without_values(module: nn.Module) -> nn.Module:
    """Return a copy of a module and its parts with the forwards of their classes, of which every tensor has a
    shape and no values. Of quantized weights it has the full shape, in float32.
    """
    copy = type(module).__new__(type(module))
    own = {name: value for name, value in module.__dict__.items() if name != "forward"}
    copy.__dict__ = {name: _drop_values(value) for name, value in own.items()}
    copy._parameters = {name: _make_parameter(module, name) for name in module._parameters}
    copy._modules = {name: part and copy_without_values(part) for name, part in module._modules.items()}
    if hasattr(copy, "comfy_cast_weights"):
        copy.comfy_cast_weights, copy.weight_function, copy.bias_function = False, [], []
    return copy


def _make_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    parameter = module._parameters[name]
    if parameter is None:
        return None
    is_product = name == "weight" and hasattr(module, "in_features")
    shape = (module.out_features, module.in_features) if is_product else parameter.shape
    return nn.Parameter(torch.empty(shape, device=META), requires_grad=False)


def _drop_values(value: Any) -> Any:
    """Return a tensor of the same shape without values, also in containers; anything else as it is."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=META)
    if type(value) in (dict, OrderedDict):
        return {name: _drop_values(part) for name, part in value.items()}
    return [_drop_values(part) for part in value] if type(value) is list else value
