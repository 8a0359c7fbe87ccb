"""Loading native checkpoints into models of diffusers and transformers: every name is checked, and weights of
8 bits are multiplied by their scales.

The model is built on the meta device and takes the file's tensors one by one, so that loading needs the
memory of the model in its own precision and of one weight more. A file of fp8 or INT8 holds each weight
divided by a scale, and the scale beside it: as `scale_weight` in the older files of ComfyUI and kijai, as
`weight_scale` in newer ones, whose `comfy_quant` names the form (see wan.stored_form).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..storage.weight_check import READABLE_FLOATS, Value, check_finite, check_names_and_shapes, rename_keys
from ..wan.stored_form import can_rotate, restore_values

Shapes = Mapping[str, tuple[int, ...]]
_FLOAT8 = {torch.float8_e4m3fn, torch.float8_e5m2}
_FLOAT8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_INT8_FORMAT = "int8_tensorwise"
_USUAL_GROUP = 256
"""Inputs that were rotated together where a file does not say how many."""
_MOST_JSON = 4096
"""Bytes of a `comfy_quant` entry that are read."""
_SCALES = (".scale_weight", ".weight_scale")
_EXTRAS = (".comfy_quant", ".scale_input", ".input_scale", *_SCALES)
"""Endings of the extra entries of a weight in quantized files. Scales of inputs do not change the weight."""
_MARKER = "scaled_fp8"
SCALE = "stored_scale"
"""Name of the buffer with the scale of a weight that is kept in the form of its file."""
GROUP = "stored_group"
"""Name of the attribute with the number of inputs that were rotated together, where any were."""
_OTHER_QUANTS = {
    ".weight_scale_2": "NVFP4",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".SCB": "bitsandbytes int8",
    ".proj_down": "SVDQuant",
}


def without_quantization(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the weights alone, without the markers and scales of fp8 files."""
    return {name: shape for name, shape in shapes.items() if not _is_extra(name)}


def _is_extra(name: str) -> bool:
    return name.endswith(_EXTRAS) or name == _MARKER


def refuse_other_quants(shapes: Shapes, source: str) -> None:
    """Raise ValueError when a file is quantized in a way whose weights cannot be read here."""
    for ending, kind in _OTHER_QUANTS.items():
        found = next((name for name in shapes if name.endswith(ending)), None)
        if found:
            raise ValueError(
                f"{source} is quantized with {kind} ({found[:120]}). Give the bf16, fp16, fp8_e4m3fn or "
                "fp8_scaled file of the model; the ComfyUI nodes take what ComfyUI itself can load."
            )


def check_native(model: nn.Module, native_name: Callable[[str], str], shapes: Shapes, source: str) -> None:
    """Raise ValueError unless a file with these shapes fills the model, with no weight left over or missing.

    `native_name` gives the file's name of a weight of the model; `shapes` may contain the scales of fp8
    weights.
    """
    refuse_other_quants(shapes, source)
    expected = {native_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    check_names_and_shapes(expected, without_quantization(shapes), source)


def fill_native(
    model: Any,
    native_name: Callable[[str], str],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    source: str,
    precise: tuple[str, ...] = (),
    keeps_form: Callable[[str], bool] | None = None,
) -> None:
    """Load a file's weights in `dtype` into a model on the meta device.

    Weights inside a module that is named in `precise` are kept in float32. Weights of 8 bits for whose native
    name `keeps_form` returns true stay as they are in the file, with their scale (or None) as the buffer
    SCALE of their module, and GROUP. Raises ValueError as `check_native` does, for scales that do not fit
    their weights, and for weights that are not finite.
    """
    check_native(model, native_name, {name: tuple(t.shape) for name, t in tensors.items()}, source)
    filled: dict[str, Tensor] = {}
    restored: dict[str, Tensor] = {}
    for name in model.state_dict():
        native = native_name(name)
        if native not in restored:  # tied weights are one tensor under two names
            precision = torch.float32 if any(part in name.split(".") for part in precise) else dtype
            restored[native] = restore_weight(native, tensors, precision, source)
            if keeps_form is not None and keeps_form(native) and tensors[native].dtype.itemsize == 1:
                restored[native] = tensors[native]
                scale, group = _find_form(native, tensors, source)
                module = model.get_submodule(name.rpartition(".")[0])
                module.requires_grad_(False)  # whole numbers can be no parameter that takes a gradient
                module.register_buffer(SCALE, scale, persistent=False)
                if group:
                    setattr(module, GROUP, group)
        filled[name] = restored[native]
    model.load_state_dict(filled, assign=True)


def restore_weight(name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype, source: str) -> Tensor:
    """Return one weight of a file in `dtype`, one of 8 bits multiplied by its scale and rotated back."""
    stored, (scale, group) = tensors[name], _find_form(name, tensors, source)
    if stored.dtype not in READABLE_FLOATS and not (stored.dtype == torch.int8 and scale is not None):
        raise ValueError(f"{source}: {name} is stored as {stored.dtype}; a floating-point weight is needed.")
    weight = restore_values(stored, scale, dtype, group)
    # Checked last: what overflows the wanted precision is as unusable as what was broken before.
    check_finite({name: weight}, source)
    return weight


def _find_form(name: str, tensors: Mapping[str, Tensor], source: str) -> tuple[Tensor | None, int]:
    """Return what a weight's stored values are to be multiplied by, None where nothing is, and how many
    inputs were rotated together, 0 where none were.
    """
    module = name.rpartition(".")[0]
    scales = [tensors[module + ending] for ending in _SCALES if module + ending in tensors]
    if not name.endswith(".weight"):
        return None, 0
    config = {}
    if scales or f"{module}.comfy_quant" in tensors:
        config = _read_config(module, tensors, source)
    scale = _read_scale(name, tensors[name], scales[0], source) if scales else None
    return scale, _read_group(name, tensors[name], config, source)


def _read_config(module: str, tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the entries of a weight's `comfy_quant`; ValueError for a form that cannot be read back."""
    stored, entry = tensors[f"{module}.weight"], tensors.get(f"{module}.comfy_quant")
    config = {"format": str(stored.dtype).removeprefix("torch.")} if entry is None else _parse_json(entry)
    kind = str(config.get("format"))[:40] if config else "something unreadable"
    is_float8 = kind in _FLOAT8_FORMATS and stored.dtype in _FLOAT8
    is_int8 = kind == _INT8_FORMAT and stored.dtype == torch.int8
    if is_float8 or (is_int8 and any(module + ending in tensors for ending in _SCALES)):
        return config
    raise ValueError(
        f"{source}: {module} is quantized as {kind} ({stored.dtype}); only {_FLOAT8_FORMATS} and "
        f"{_INT8_FORMAT!r} with a scale can be read back. Give the bf16, fp16, fp8 or int8 file of the "
        "model; the ComfyUI nodes take what ComfyUI itself can load."
    )


def _parse_json(entry: Tensor) -> dict[str, Any]:
    """Return the content of a `comfy_quant` entry, JSON as bytes; empty where it cannot be read."""
    try:
        content = json.loads(entry.to(torch.uint8).numpy().tobytes()[:_MOST_JSON])
    except (ValueError, RecursionError, RuntimeError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_group(name: str, stored: Tensor, config: Mapping[str, Any], source: str) -> int:
    """Return how many inputs of a weight were rotated together, 0 where none were."""
    inner = config.get("params")
    options = (inner if isinstance(inner, dict) else {}) | dict(config)
    if stored.dtype != torch.int8 or not options.get("convrot"):
        return 0
    group = options.get("convrot_groupsize", _USUAL_GROUP)
    if stored.ndim == 2 and type(group) is int and can_rotate(stored.shape[1], group):
        return group
    raise ValueError(
        f"{source}: {name} is {tuple(stored.shape)} and says that its inputs were rotated in groups of "
        f"{str(group)[:20]}, which must be a power of 4 that divides them. It is a damaged file: download it "
        "again."
    )


def _read_scale(name: str, stored: Tensor, scale: Tensor, source: str) -> Tensor:
    """Return a scale in float32, shaped to multiply its weight: one number, or one for each output."""
    if scale.dtype not in READABLE_FLOATS:
        raise ValueError(
            f"{source}: the scale of {name} is stored as {scale.dtype}; a floating-point number is needed. "
            "Give the bf16, fp16 or fp8 file of the model."
        )
    if scale.numel() == 1:
        return scale.float().reshape(())
    if scale.numel() == stored.shape[0]:
        return scale.float().reshape(-1, *[1] * (stored.ndim - 1))
    raise ValueError(
        f"{source}: {name} is {tuple(stored.shape)} and its scale {tuple(scale.shape)}; one number, or one "
        "for each output, is needed. The file is quantized in blocks: give the bf16, fp16 or fp8 file."
    )


def rename_to_native(
    values: Mapping[str, Value], rename: Callable[[str], str], source: str, prefix: str = ""
) -> dict[str, Value]:
    """Return the tensors or shapes of a file under native names, without the file's prefix.

    `rename` gives the native name of a weight that the file calls otherwise. Scales are renamed with their
    weights. Raises ValueError when two names in the file stand for one weight.
    """

    def rename_to_native(name: str) -> str:
        name = name.removeprefix(prefix)
        ending = next((ending for ending in _EXTRAS if name.endswith(ending)), "")
        bare = name.removesuffix(ending)
        # Names are known by their `.weight`, which the scales lack.
        return rename(f"{bare}.weight").removesuffix(".weight") + ending if ending else rename(name)

    return rename_keys(values, rename_to_native, source)
