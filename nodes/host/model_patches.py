"""What other nodes have put on a MODEL, and whether it can be trained with.

Weight patches (LoRAs) and object patches are put into the model when it is loaded, and it is trained with
them. Injections (LoRAs that run beside the weights) and forwards that training replaces itself are refused.
Wrappers, and patches that stand in the options of a sampling run, act only while ComfyUI samples. Training
calls the model itself, so that these would be missing without a word; they are refused by name unless they
only save time or only steer the sampling.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...smra_core.storage.content_hash import hash_content

_OWN_LOADER = "smra_sparse_lora_"
"""Beginning of the keys that SMRA Sparse LoRA Loader gives to its wrappers (nodes.patching.apply_loras)."""
_TIME_SAVERS = ("cache", "torch.compile", "torch_compile", "sage", "flash", "xformers", "sdpa", "fp16_accum")
"""Words in the names of what only makes an evaluation faster, or leaves it out: kernels, compilers, caches.
"""
_WINDOWS = "contextwindows"
"""Beginning of the keys of ComfyUI's context windows, which sample a long video in parts."""
_GUIDANCE = (
    "sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function", "denoise_mask_function",
)  # fmt: skip
"""Options whose functions combine several predictions. Training has one prediction and no guidance."""
_HOST_OPTIONS = {
    *_GUIDANCE, "transformer_options", "context_handler", "disable_cfg1_optimization", "multigpu_clones",
    "ignore_multigpu", "torch_compile_kwargs", "model_function_wrapper",
}  # fmt: skip
"""Options of a MODEL that are handled here or concern sampling alone."""
_HANDLED_OPTIONS = {"wrappers", "callbacks", "patches", "patches_replace", "optimized_attention_override"}
"""Transformer options that are looked into one by one."""
_BEFORE_SAMPLING = ("on_pre_run", "on_prepare_state", "on_apply_hooks")
"""Kinds of callbacks that can change the model when a sampling run or a step begins."""
_TRAINED_FORWARD = re.compile(r"diffusion_model\.blocks\.\d+(\.\w+_attn\.[qkvo]|\.ffn\.[02])?\.forward")
"""Forwards that training replaces itself."""
_DEEPEST = 6
"""Number of levels of attributes and closures that are looked through for what a function holds."""


class Patch(NamedTuple):
    """Something that another node has put on a MODEL, for sampling alone."""

    place: str
    """Place where it stands, in ComfyUI's words."""
    key: str
    """Key that the other node has given to it, or an empty text."""
    function: Any

    @property
    def name(self) -> str:
        """Name for a message."""
        key = f" '{self.key}'" if self.key and self.key != "None" else ""
        return f"{self.place}{key} ({describe_function(self.function)})"

    @property
    def saves_time_only(self) -> bool:
        """Whether the name says that it is a kernel, a compiler or a cache."""
        words = f"{self.key} {describe_function(self.function)}".lower()
        return any(word in words for word in _TIME_SAVERS)


def check_patches(model) -> list[str]:
    """Return notes on what of a MODEL takes no part in training.

    Raises ValueError, with its name, for a patch that acts while ComfyUI samples and cannot be trained with.
    """
    own = [patch for patch in _list_sampling_patches(model) if patch.key.startswith(_OWN_LOADER)]
    if own:
        raise ValueError(
            "This MODEL has LoRAs that SMRA Sparse LoRA Loader adds while sampling, and training would be "
            "without them. Connect the MODEL from before that loader. To train on top of a LoRA, give the "
            "loader one strength for both sides of T_point and set constant_lora to 'merge' in SMRA Loader "
            "Options."
        )
    patches = list(_list_sampling_patches(model))
    refused = [patch for patch in patches if not (patch.saves_time_only or _is_window(patch))]
    if refused:
        raise ValueError(
            f"This MODEL carries what works only while ComfyUI samples, and training would be without it: "
            f"{', '.join(patch.name for patch in refused)}. Connect the MODEL from before the node that put "
            "it there."
        )
    notes = []
    if patches:
        names = ", ".join(dict.fromkeys(patch.name for patch in patches))
        notes.append(f"The model is trained without what only changes how sampling runs: {names}.")
    guidance = [name for name in _GUIDANCE if model.model_options.get(name)]
    if guidance:
        notes.append(f"The model is trained without guidance functions ({', '.join(guidance)}).")
    return notes


def check_conditioning(positive) -> None:
    """Raise ValueError for a CONDITIONING that brings LoRAs (hooks) or a ControlNet: both act only while
    ComfyUI samples.
    """
    for _, options, *_ in positive:
        for key, name in (("hooks", "hooks (LoRAs on the prompt)"), ("control", "a ControlNet")):
            if options.get(key) is not None:
                raise ValueError(
                    f"The conditioning 'positive' carries {name}, and training would be without it. Connect "
                    "the prompt from before the node that put it there."
                )


def read_plain_options(model) -> dict[str, Any]:
    """Return the numbers, texts and tensors among a MODEL's transformer options, such as the scale of its
    positions (rope_options); they hold in training as they do while sampling.
    """
    options = model.model_options.get("transformer_options", {})
    return {key: value for key, value in options.items() if key not in _HANDLED_OPTIONS and _is_plain(value)}


def list_trained_patches(model) -> list[str]:
    """Return the names of what other nodes have put into a MODEL and what it is trained with, except for
    weight patches.
    """
    objects = [f"{name} ({describe_function(patch)})" for name, patch in _list_object_patches(model)]
    return objects + [f"injection '{key}'" for key in getattr(model, "injections", {})]


def describe_trained_patches(model) -> str:
    """Return a text by which a run recognizes what `list_trained_patches` names, with a hash of the values
    that the patches hold; empty for a MODEL without any.
    """
    lines = [
        f"{name} {describe_function(p)} {_describe_values(p)}" for name, p in _list_object_patches(model)
    ]
    for key, injections in getattr(model, "injections", {}).items():
        held = [_describe_values(part) for one in injections for part in (one.inject, one.eject)]
        lines.append(f"{key} {held}")
    plain = read_plain_options(model)
    if plain:
        lines.append(f"options {_describe_values(plain)}")
    return "\n".join(lines)


def describe_function(function) -> str:
    """Return module and name of a function, or of an object's class."""
    function = getattr(function, "func", function)  # functools.partial
    function = getattr(function, "__func__", function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _list_sampling_patches(model) -> Iterator[Patch]:
    """Yield all that acts only while ComfyUI samples."""
    options = model.model_options
    inner = options.get("transformer_options", {})
    # Both are put back when the model is unloaded in the middle of a run, under the LoRA that is trained.
    for key, injections in getattr(model, "injections", {}).items():
        for injection in injections:
            yield Patch("injection", f"injection {key}", injection.inject)
    for name, patch in model.object_patches.items():
        if _TRAINED_FORWARD.fullmatch(name):
            yield Patch("object patch", name, patch)
    for kinds in (getattr(model, "wrappers", {}), inner.get("wrappers", {})):
        for kind, by_key in kinds.items():
            yield from _list_by_key(f"wrapper of {kind}", by_key)
    for kinds in (getattr(model, "callbacks", {}), inner.get("callbacks", {})):
        for kind in _BEFORE_SAMPLING:
            yield from _list_by_key(f"callback {kind}", kinds.get(kind, {}))
    if options.get("model_function_wrapper") is not None:
        yield Patch("model_function_wrapper", "", options["model_function_wrapper"])
    for kind, functions in inner.get("patches", {}).items():
        for function in functions:
            yield Patch(f"patch {kind}", "", function)
    for kind, blocks in inner.get("patches_replace", {}).items():
        for block, function in blocks.items():
            yield Patch(f"replacement of {kind} {block}", "", function)
    override = inner.get("optimized_attention_override")
    if override is not None and not _is_kernel(override):
        yield Patch("attention override", "", override)
    for key, value in inner.items():
        if key not in _HANDLED_OPTIONS and not _is_plain(value):
            yield Patch("transformer option", str(key), value)
    for key, value in options.items():
        if key not in _HOST_OPTIONS and not _is_plain(value):
            yield Patch("model option", str(key), value)


def _list_by_key(place: str, by_key: Mapping) -> Iterator[Patch]:
    for key, functions in by_key.items():
        for function in functions:
            yield Patch(place, str(key), function)


def _is_window(patch: Patch) -> bool:
    return patch.key.lower().startswith(_WINDOWS)


def _is_kernel(override: Callable) -> bool:
    """Whether an attention override is one of ComfyUI's own kernels, which all compute the same."""
    held = [override, *_list_cells(override)]
    return any(describe_function(value).startswith("comfy.ldm.modules.attention.") for value in held)


def _is_plain(value) -> bool:
    """Whether this is made of numbers, texts and tensors alone."""
    if isinstance(value, Mapping):
        return all(_is_plain(part) for part in value.values())
    if isinstance(value, (list, tuple, set)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, Tensor))


def _list_object_patches(model) -> list[tuple[str, Any]]:
    """Return the patches of parts of the DiT by name; a compiled part computes the same as before."""
    patches = getattr(model, "object_patches", {}).items()
    return [
        (name, patch)
        for name, patch in sorted(patches)
        if name.startswith("diffusion_model") and type(patch).__name__ != "OptimizedModule"
    ]


def _list_cells(function) -> list:
    """Return what the closure of a function holds."""
    cells = getattr(function, "__closure__", None) or ()
    filled = []
    for cell in cells:
        with suppress(ValueError):  # a name that is not assigned yet
            filled.append(cell.cell_contents)
    return filled


def _describe_values(value) -> str:
    """Return a hash of the numbers, texts and tensors that a function or an object holds."""
    return hash_content("\n".join(_walk(value, _DEEPEST, set())).encode())


def _walk(value, depth: int, seen: set[int]) -> Iterator[str]:
    """Yield a line for each value that is held. Modules are left out: they are parts of the model."""
    if isinstance(value, Tensor):
        # In the fewest bits, because ComfyUI casts such values in place when it first loads the model.
        few = value.detach().to("cpu", torch.bfloat16) if value.is_floating_point() else value.cpu()
        yield hash_content(few)
    elif isinstance(value, (bool, int, float, str)):
        yield repr(value)
    elif depth and id(value) not in seen and not isinstance(value, nn.Module):
        seen.add(id(value))
        for part in _list_parts(value):
            yield from _walk(part, depth - 1, seen)


def _list_parts(value) -> list:
    """Return what a container, a function (closure, defaults, owner) or an object holds."""
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple)):
        return list(value)
    if callable(value) and hasattr(value, "__code__"):
        return [value.__code__.co_code.hex(), *_list_cells(value), *(value.__defaults__ or ())]
    if hasattr(value, "__func__"):
        # A module's own method stands in a hook only as long as the hook is in the model.
        return [] if isinstance(value.__self__, nn.Module) else [value.__func__, value.__self__]
    if hasattr(value, "func") and hasattr(value, "args"):
        return [value.func, value.args, value.keywords]
    if isinstance(value, type) or type(value).__name__.endswith("Patcher"):
        return []
    return list(getattr(value, "__dict__", {}).values())
