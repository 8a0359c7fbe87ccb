"""Optimizers of a training run, and their state as named tensors."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

ADAMW, ADAMW_8BIT, PRODIGY = "adamw", "adamw-8bit", "prodigy"
OPTIMIZERS = (ADAMW, ADAMW_8BIT, PRODIGY)
LEAST_PRODIGY_RATE = 0.01
"""Smallest learning rate that is taken for Prodigy, which multiplies the rate that it finds by it."""
_MOMENT, _NUMBER, _GROUP = "adam.", "number.adam.", "number.group."
"""Beginnings of the names of tensors and of plain numbers that an optimizer keeps of a parameter, and of the
numbers that it keeps of all together.
"""


def make_optimizer(
    name: str, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return one of OPTIMIZERS for these parameters.

    Raises ImportError, with the command that installs it, when the package of the optimizer is missing.
    """
    if name == ADAMW:
        fused = _choose_fused(parameters[0].device)
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    if name == ADAMW_8BIT:
        return import_adamw_8bit()(parameters, lr=learning_rate, weight_decay=weight_decay)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it uses decoupled weight decay
        return import_prodigy()(
            parameters, lr=learning_rate, weight_decay=weight_decay,
            use_bias_correction=True, safeguard_warmup=True,
        )  # fmt: skip


def _choose_fused(device: torch.device) -> bool:
    """Whether AdamW updates all parameters in one kernel: on CUDA, where 300 small ones cost milliseconds."""
    return device.type == "cuda"


def import_adamw_8bit() -> Callable[..., torch.optim.Optimizer]:
    """Return the AdamW of bitsandbytes, which keeps its moments in 8 bits. Raises ImportError without it."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(_explain_missing(ADAMW_8BIT, "bitsandbytes", error)) from error
    return AdamW8bit


def import_prodigy() -> Callable[..., torch.optim.Optimizer]:
    """Return Prodigy (arXiv 2306.06101) of prodigyopt. Raises ImportError without it."""
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise ImportError(_explain_missing(PRODIGY, "prodigyopt", error)) from error
    return Prodigy


def check_optimizer(name: str) -> None:
    """Raise ImportError when the package of an optimizer is missing, before anything is loaded."""
    {ADAMW: lambda: None, ADAMW_8BIT: import_adamw_8bit, PRODIGY: import_prodigy}[name]()


def _explain_missing(optimizer: str, package: str, error: ImportError) -> str:
    return (
        f"optimizer '{optimizer}' needs the package {package}, which cannot be imported ({error}). Install "
        f"it with `python -m pip install {package}`, or choose '{ADAMW}'."
    )


def collect_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return what the optimizer remembers, as tensors by name: those of each parameter, and plain numbers."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            is_tensor = isinstance(value, Tensor)
            prefix = _MOMENT if is_tensor else _NUMBER
            tensors[f"{prefix}{name}.{entry}"] = value if is_tensor else _pack(value)
    return tensors | {f"{_GROUP}{key}": _pack(value) for key, value in _list_numbers(optimizer).items()}


def restore_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer what `collect_state` returned."""
    for key, value in tensors.items():
        if key.startswith(_GROUP):
            optimizer.param_groups[0][key.removeprefix(_GROUP)] = value.item()
            continue
        prefix = next((each for each in (_MOMENT, _NUMBER) if key.startswith(each)), None)
        if prefix is None:
            continue
        name, _, entry = key.removeprefix(prefix).rpartition(".")
        parameter = parameters[name]
        kept = optimizer.state.setdefault(parameter, {})
        if prefix == _NUMBER:
            kept[entry] = value.item()
        else:
            # AdamW keeps its step counts on the CPU, unless it is fused, and its moments with the parameter.
            on_cpu = entry == "step" and not optimizer.param_groups[0].get("fused")
            kept[entry] = value.clone() if on_cpu else value.to(parameter.device, copy=True)


def _pack(value: float) -> Tensor:
    """Return a number as a tensor that holds it exactly."""
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _list_numbers(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the numbers that an optimizer changes itself, such as the rate that Prodigy finds."""
    if isinstance(optimizer, torch.optim.AdamW):
        return {}
    group = optimizer.param_groups[0]
    numbers = {key: value for key, value in group.items() if isinstance(value, int | float) and key != "lr"}
    return {key: value for key, value in numbers.items() if not isinstance(value, bool)}
