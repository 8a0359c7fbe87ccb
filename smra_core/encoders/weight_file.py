"""Weight files: reading what strangers made (nothing is executed, every key accounted for), and writing."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model", "teacher")
"""Entries under which training programs put the weights, beside optimiser states and counters."""
_MOST_NAMES = 20_000
_SHOWN = 5


class WeightFile(NamedTuple):
    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_weight_file(path: str | Path) -> WeightFile:
    """Tensors of a .safetensors, .pth, .pt, .ckpt or .bin file, on the CPU, by their names in the file.

    A dict wrapped as `{"state_dict": ...}` is unwrapped and the `module.` prefix of parallel training is
    dropped. ValueError for what is missing, truncated, compressed, of torch's pre-1.6 format, holds objects
    other than plain tensors, or holds no tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file. Choose a weight file ending in .safetensors or .pth.")
    tensors, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not tensors:
        raise ValueError(f"{path} holds no tensors. Download the file again, or choose another.")
    return WeightFile(path, _without_module_prefix(tensors), metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            _refuse_too_many(len(names), path)
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}). Download it again."
        ) from error


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    _refuse_odd_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen kinds, all of which mean: not a plain weight file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} could not be read as plain weights, so it was refused and nothing in it was run "
            f"({reason[:200]}). Get it from its authors again, or a .safetensors version."
        ) from error
    return _unwrapped(content, path), {}


def _refuse_odd_archive(path: Path) -> None:
    """Only zip archives, not compressed, as torch writes since 1.6: their size bounds the memory."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a weight file of PyTorch 1.6 or newer: it is truncated, or in the older format. "
            "Download it again, or get a .safetensors version."
        )
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError(f"{path} is a compressed archive; PyTorch weight files are not. Refused.")


def _refuse_too_many(names: int, path: Path) -> None:
    if names > _MOST_NAMES:
        raise ValueError(f"{path} holds {names} tensors; no model used here has more than {_MOST_NAMES}.")


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a dict of named tensors is needed.")
    _refuse_too_many(len(content), path)
    strange = [str(key) for key, value in content.items() if not _is_plain_tensor(value)]
    if strange:
        raise ValueError(f"{path} holds things that are not plain tensors: {_listed(strange)}.")
    return {str(key): value for key, value in content.items()}


def _is_plain_tensor(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    # Overlapping strides let a tiny file claim a tensor of any size.
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _without_module_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def write_weight_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write safetensors so that `path` is at all times the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    save_file(dict(tensors), temporary, dict(metadata))
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def fill_module(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy every tensor into the module; ValueError unless names and shapes agree and all is finite.

    `source` names the file in messages. Tensors are converted to the dtype and device of the module.
    """
    expected = module.state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{source}: {len(missing)} weights are missing ({_listed(missing)}) and {len(unknown)} are "
            f"unknown ({_listed(unknown)}). This is another model, or a damaged file."
        )
    wrong = [key for key in expected if expected[key].shape != tensors[key].shape]
    if wrong:
        shown = [f"{k} is {tuple(tensors[k].shape)}, needed {tuple(expected[k].shape)}" for k in wrong]
        raise ValueError(f"{source}: {len(wrong)} weights have another shape: {_listed(shown)}.")
    _refuse_not_finite(tensors, source)
    module.load_state_dict(dict(tensors))


def _refuse_not_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    bad = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(f"{source}: weights are NaN or infinite in {_listed(bad)}. Download the file again.")


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    rest = len(names) - _SHOWN
    return ", ".join(name[:120] for name in names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
