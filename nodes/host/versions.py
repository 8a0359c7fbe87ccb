"""Differences between ComfyUI's versions from 0.3.48 on; no other file asks for them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def loaded_weight(module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Load weight and bias of one of ComfyUI's linears, on the device and in the dtype of `like`,
    dequantized.

    They may lie in a buffer that the next layer's cast overwrites, so nothing may keep them after the block.
    """
    import comfy.ops

    weight, bias, stream = _cast(comfy.ops, module, like)
    try:
        yield (weight.dequantize() if is_quantized(weight) else weight).to(like.dtype), bias
    finally:
        if stream is not None:
            comfy.ops.uncast_bias_weight(module, weight, bias, stream)


def _cast(ops, module: nn.Module, like: Tensor) -> tuple:
    # Since 0.3.66 a cast can stay in an offload stream until it is given back.
    if "offloadable" in inspect.signature(ops.cast_bias_weight).parameters:
        return ops.cast_bias_weight(module, like, offloadable=True)
    return (*ops.cast_bias_weight(module, like), None)


def is_quantized(weight: Tensor) -> bool:
    """Whether this is one of ComfyUI's own quantized tensors."""
    import comfy.ops

    quantized = getattr(comfy.ops, "QuantizedTensor", None)
    return quantized is not None and isinstance(weight, quantized)


@contextmanager
def training_mode() -> Iterator[None]:
    """Set ComfyUI's own flag that its fused kernels, which have no backward, must not be used."""
    import comfy.model_management

    if not hasattr(comfy.model_management, "in_training"):
        yield  # older versions have no such kernels
        return
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


@contextmanager
def replaced_vae_width(width: int) -> Iterator[None]:
    """Build WAN's VAE with this many channels; older versions build it 96 channels wide for any file."""
    import comfy.ldm.wan.vae as module

    original = module.WanVAE
    module.WanVAE = lambda **config: original(**{**config, "dim": width})
    try:
        yield
    finally:
        module.WanVAE = original


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
