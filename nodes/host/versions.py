"""Differences between ComfyUI's versions from 0.3.48 on; no other file asks for them.

Here is also the list of everything of ComfyUI that the pack imports. tests/core/test_host_symbols.py keeps it
complete, and tests/host checks it against a running ComfyUI.
"""

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor, nn

log = logging.getLogger("smrabooth")

OLDEST_HOST = "0.3.48"
"""Oldest ComfyUI whose node API the pack is written for."""

SYMBOLS = {
    "comfy.hooks": ("HookKeyframe", "HookKeyframeGroup"),
    "comfy.ldm.modules.attention": ("attention_pytorch",),
    "comfy.ldm.wan.model": ("optimized_attention",),
    "comfy.ldm.wan.vae": ("WanVAE",),
    "comfy.lora": ("load_lora", "model_lora_keys_unet"),
    "comfy.model_management": (
        "InterruptProcessingException",
        "current_loaded_models",
        "extra_reserved_memory",
        "get_free_memory",
        "get_torch_device",
        "get_torch_device_name",
        "get_total_memory",
        "load_models_gpu",
        "should_use_bf16",
        "soft_empty_cache",
        "throw_exception_if_processing_interrupted",
        "unload_all_models",
    ),
    "comfy.ops": ("cast_bias_weight",),
    "comfy.patcher_extension": ("CallbacksMP", "WrappersMP"),
    "comfy.sampler_helpers": ("convert_cond",),
    "comfy.samplers": ("SAMPLER_NAMES", "SCHEDULER_NAMES", "calculate_sigmas", "encode_model_conds"),
    "comfy.sd": ("CLIP", "VAE", "load_diffusion_model"),
    "comfy.utils": ("ProgressBar", "load_torch_file"),
    "comfy_api.latest": ("io", "ui"),
    "comfy_execution.graph_utils": ("GraphBuilder",),
    "folder_paths": (
        "add_model_folder_path",
        "folder_names_and_paths",
        "get_filename_list",
        "get_folder_paths",
        "get_full_path",
        "get_full_path_or_raise",
        "get_input_directory",
        "get_output_directory",
        "get_temp_directory",
        "models_dir",
    ),
}
"""Names that the pack takes from ComfyUI, by module."""

NEWER_SYMBOLS = {
    "comfy.ldm.modules.attention": ("wrap_attn",),
    "comfy.model_management": ("get_offload_stream", "in_training", "is_oom"),
    "comfy.ops": ("QuantizedTensor", "linear_input_act", "uncast_bias_weight"),
}
"""Names that only newer versions have; the code asks before it uses them."""


def log_versions() -> None:
    """Log the versions and the device in one line, and what this ComfyUI lacks in one sentence."""
    from ...smra_core import __version__

    log.info("SMRABooth %s on ComfyUI %s, %s", __version__, read_host_version(), _describe_device())
    if missing := find_missing_symbols():
        log.warning(
            "SMRABooth: this ComfyUI (%s) has no %s. Nodes that need them will fail; the pack needs "
            "ComfyUI %s or newer. If yours is newer, update the pack.",
            read_host_version(), ", ".join(missing), OLDEST_HOST,
        )  # fmt: skip


def _describe_device() -> str:
    """Return the device's name; a version that lacks the functions must not keep the pack from loading."""
    import comfy.model_management as management

    try:
        return management.get_torch_device_name(management.get_torch_device())
    except AttributeError:
        return "unknown device"


def read_host_version() -> str:
    """Return ComfyUI's version, or "of unknown version"."""
    try:
        return importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return "of unknown version"


def find_missing_symbols() -> list[str]:
    """Return the dotted names that the pack needs and this ComfyUI does not have."""
    missing = []
    for module_name, names in SYMBOLS.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            missing.append(module_name)
            continue
        missing += [f"{module_name}.{name}" for name in names if not hasattr(module, name)]
    return missing


def loaded_weight(linear: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
    """Load weight and bias of one of ComfyUI's linears, on the device and in the dtype of `like`,
    dequantized.

    They may lie in a buffer that the next layer's cast overwrites, so nothing may keep them after the block.
    """
    if _is_used_as_it_is(linear, like):
        return nullcontext((linear.weight, linear.bias))
    return _cast_weight(linear, like)


def _is_used_as_it_is(linear: nn.Module, like: Tensor) -> bool:
    """Whether ComfyUI itself would multiply with the parameter, which it neither casts nor patches."""
    weight = linear.weight
    is_cast = linear.comfy_cast_weights or linear.weight_function or linear.bias_function
    return (
        not is_cast
        and type(weight) is nn.Parameter
        and (weight.dtype, weight.device) == (like.dtype, like.device)
    )


@contextmanager
def _cast_weight(linear: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    import comfy.ops

    weight, bias, stream = _cast(comfy.ops, linear, like)
    try:
        yield (weight.dequantize() if is_quantized(weight) else weight).to(like.dtype), bias
    finally:
        if stream is not None:
            comfy.ops.uncast_bias_weight(linear, weight, bias, stream)


def _cast(ops, linear: nn.Module, like: Tensor) -> tuple:
    if _can_offload(ops.cast_bias_weight):
        return ops.cast_bias_weight(linear, like, offloadable=True)
    return (*ops.cast_bias_weight(linear, like), None)


@cache  # reading a signature takes longer than casting a resident weight
def _can_offload(cast: Callable) -> bool:
    """Whether a cast can stay in an offload stream until it is given back: since 0.3.66."""
    return "offloadable" in inspect.signature(cast).parameters


def is_quantized(weight: Tensor) -> bool:
    """Whether this is one of ComfyUI's own quantized tensors."""
    import comfy.ops

    quantized = getattr(comfy.ops, "QuantizedTensor", None)
    return quantized is not None and isinstance(weight, quantized)


def has_offload_stream(device: torch.device) -> bool:
    """Whether ComfyUI copies weights to a device beside its work; --disable-async-offload says no."""
    import comfy.model_management as management

    find = getattr(management, "get_offload_stream", None)
    return find is not None and find(device) is not None


@contextmanager
def training_mode() -> Iterator[None]:
    """Keep ComfyUI from kernels without a backward: by its own flag, and on versions whose WAN takes no
    attention from the options of the model, by torch's attention in place of the one it was started with.
    """
    import comfy.ldm.modules.attention as attention
    import comfy.model_management as management

    with ExitStack() as changes:
        if hasattr(management, "in_training"):  # older versions have no such kernels
            changes.enter_context(_replaced(management, "in_training", True))
        if not hasattr(attention, "wrap_attn"):
            import comfy.ldm.wan.model as wan

            changes.enter_context(_replaced(wan, "optimized_attention", attention.attention_pytorch))
        yield


@contextmanager
def _replaced(module, name: str, value) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def replaced_vae_width(width: int) -> Iterator[None]:
    """Build WAN's VAE with this many channels; older versions build it 96 channels wide for any file."""
    import comfy.ldm.wan.vae as module

    original = module.WanVAE
    with _replaced(module, "WanVAE", lambda **config: original(**{**config, "dim": width})):
        yield


def is_dynamic(patcher) -> bool:
    """Whether weights live in pages that may vanish at any time (dynamic VRAM, the default on NVIDIA)."""
    return bool(getattr(patcher, "is_dynamic", bool)())


def compute_dtype_of(model) -> torch.dtype:
    """Return the dtype that a model of ComfyUI computes in."""
    if hasattr(model, "get_dtype_inference"):
        return model.get_dtype_inference()
    return model.manual_cast_dtype or model.get_dtype()


def measure_trainable_memory(device: torch.device) -> float | None:
    """Return the bytes of a card that a job may use once ComfyUI has unloaded everything; None on a CPU."""
    import comfy.model_management as management

    if device.type == "cpu":
        return None
    return management.get_total_memory(device) - management.extra_reserved_memory()


def find_source_file(patcher) -> str | None:
    """Return the file that a MODEL or VAE was loaded from, or None where ComfyUI does not remember it."""
    remembered = getattr(patcher, "cached_patcher_init", None)
    first = remembered[1][0] if remembered and remembered[1] else None
    return first if isinstance(first, str) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ComfyUI would call this out of memory, too."""
    import comfy.model_management as management

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return hasattr(management, "is_oom") and bool(management.is_oom(error))
