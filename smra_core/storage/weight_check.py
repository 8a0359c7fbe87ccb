"""Checks of the tensors read from a weight file: names, shapes, dtypes and finite values."""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


READABLE_FLOATS = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
)
"""Dtypes of weights that are plain floating-point numbers, not codes of a quantization."""


WHOLE_NUMBERS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))
"""Integer dtypes that counters and alphas may have."""


_SHOWN = 5
"""Number of names that a message shows."""


def fill_module(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy every tensor into the module; raise ValueError unless names and shapes agree and all are finite.

    `source` names the file in messages. Tensors are converted to the dtype and device of the module. A module
    on the meta device gets memory on the CPU after all checks have passed; its buffers that are in no file
    are left without values.
    """
    state = module.state_dict()
    check_names_and_shapes(collect_shapes(state), collect_shapes(tensors), source)
    odd = [
        f"{name} is {value.dtype}"
        for name, value in tensors.items()
        if value.dtype not in READABLE_FLOATS | (set() if state[name].is_floating_point() else WHOLE_NUMBERS)
    ]
    if odd:
        raise ValueError(
            f"{source}: {len(odd)} weights are no floating-point numbers: {join_names(odd)}. The file is "
            "quantized or damaged: get the model's float32, bf16 or fp16 file."
        )
    check_finite(tensors, source)
    if any(value.is_meta for value in state.values()):
        module.to_empty(device="cpu")
    module.load_state_dict(dict(tensors))


def collect_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name, for `check_names_and_shapes`."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def rename_keys(tensors: Mapping[str, Value], rename: Callable[[str], str], source: str) -> dict[str, Value]:
    """Rename all keys; raise ValueError when two of them get the same name."""
    renamed: dict[str, Value] = {}
    for name, value in tensors.items():
        new = rename(name)
        if new in renamed:
            raise ValueError(
                f"{source} holds {new[:120]} twice, second as {name[:120]!r}. Download it again."
            )
        renamed[new] = value
    return renamed


def check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Raise ValueError unless a file has exactly the names and shapes that a model needs.

    The message shows what was found and what is needed.
    """
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{source}: {len(missing)} weights are missing ({join_names(missing)}) and {len(unknown)} are "
            f"unknown ({join_names(unknown)}). The file is of another model or "
            "damaged: choose the right one, or download it again."
        )
    wrong = [f"{k} is {found[k]}, needed {expected[k]}" for k in expected if expected[k] != found[k]]
    if wrong:
        raise ValueError(
            f"{source}: {len(wrong)} weights have another shape: {join_names(wrong)}. The file is of "
            "another model: choose the right one."
        )


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError, naming the tensors, when a value is NaN or infinite."""
    bad = [key for key, value in tensors.items() if not is_finite(value)]
    if bad:
        raise ValueError(
            f"{source}: weights are NaN or infinite in {join_names(bad)}. Download the file again."
        )


def is_finite(value: Tensor) -> bool:
    """Return whether no value is NaN or infinite, in one pass and without a copy (float8 is copied to
    bfloat16).
    """
    if not value.numel():
        return True
    if value.is_floating_point() and value.element_size() == 1:
        value = value.bfloat16()  # which holds every value of float8, and which aminmax supports
    # NaN goes through to both ends. isfinite(value).all() takes 20 times as long.
    return all(math.isfinite(end) for end in (each.item() for each in torch.aminmax(value)))


def join_names(names: list[str]) -> str:
    """Join the first five names for an error message, each cut to 120 characters.

    A hostile file may hold very long names, and many of them.
    """
    if not names:
        return "none"
    rest = len(names) - _SHOWN
    return ", ".join(name[:120] for name in names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
