"""Weight files: reading what strangers made (nothing is executed, every key accounted for), and writing."""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .weight_check import Value, first_names, shapes_of

INDEX = ".safetensors.index.json"
"""Ending of the list of parts of a model that is split into several safetensors files."""
_MOST_PARTS = 200
_WRAPPERS = ("state_dict", "model", "teacher")
"""Entries under which training programs put the weights, beside optimizer states and counters."""
_MOST_NAMES = 20_000


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
    if path.suffix == ".gguf":
        raise ValueError(
            f"{path} is a GGUF file, quantized in blocks. Get the model's bf16, fp16 or fp8 .safetensors."
        )
    if path.name.endswith(INDEX):
        parts = [read_weight_file(part) for part in list_parts(path)]
        return WeightFile(path, _join_parts([part.tensors for part in parts], path), {})
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
        raise _build_read_error(path, error) from error
    except RuntimeError as error:  # torch could not map the file
        raise ValueError(
            f"{path} is {path.stat().st_size / 1e9:.1f} GB, which could not be mapped into memory "
            f"({str(error)[:120]}). Free memory, or take the fp8 file of the model."
        ) from error


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a weight file; of safetensors only the header is read. ValueError as above."""
    path = Path(path)
    if path.name.endswith(INDEX):
        return _join_parts([read_shapes(part) for part in list_parts(path)], path)
    if path.suffix != ".safetensors" or not path.is_file():
        return shapes_of(read_weight_file(path).tensors)
    try:
        # As numpy: torch reserves the whole file in memory, 28 GB of the 14B, though only the header is read.
        with safe_open(path, framework="np") as file:
            names = file.keys()
            _refuse_too_many(len(names), path)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise _build_read_error(path, error) from error
    if not shapes:
        raise ValueError(f"{path} holds no tensors. Download the file again, or choose another.")
    return _without_module_prefix(shapes)


def list_parts(index: Path) -> list[Path]:
    """Files that a `….safetensors.index.json` lists; ValueError unless they all lie beside it."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(name) for name in places})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of safetensors ({error}). Download it again.") from error
    if len(names) > _MOST_PARTS or any(Path(name).name != name for name in names):
        raise ValueError(f"{index} lists {len(names)} parts, such as {names[0][:80]}. Refused.")
    lacking = [name for name in names if not (index.parent / name).is_file()]
    if lacking:
        raise ValueError(f"{index.parent} lacks {first_names(lacking)} of the model's {len(names)} parts.")
    return [index.parent / name for name in names]


def _join_parts(parts: list[dict[str, Value]], path: Path) -> dict[str, Value]:
    joined = {name: value for part in parts for name, value in part.items()}
    if len(joined) < sum(map(len, parts)):
        raise ValueError(f"{path}: two parts of the model hold the same weight. Download it again.")
    return joined


def _build_read_error(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a readable safetensors file ({error}). Download it again.")


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
    return _unwrap(content, path), {}


def _refuse_odd_archive(path: Path) -> None:
    """Only zip archives, not compressed, as torch writes since 1.6: their size bounds the memory."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a weight file of PyTorch 1.6 or newer: it is truncated, or in the older format. "
            "Download it again, or get a .safetensors version."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except Exception as error:  # a damaged list of contents makes zipfile raise half a dozen kinds
        raise ValueError(f"{path} is a damaged archive ({str(error)[:120]}). Download it again.") from error
    if packed:
        raise ValueError(f"{path} is a compressed archive; PyTorch weight files are not. Refused.")


def _refuse_too_many(names: int, path: Path) -> None:
    if names > _MOST_NAMES:
        raise ValueError(f"{path} holds {names} tensors; no model used here has more than {_MOST_NAMES}.")


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a dict of named tensors is needed.")
    _refuse_too_many(len(content), path)
    unnamed = next((key for key in content if not isinstance(key, str)), None)
    if unnamed is not None:  # only its kind is told: a key of nested tuples may be endless as text
        raise ValueError(f"{path} names a tensor by a {type(unnamed).__name__}; names must be text. Refused.")
    strange = [key for key, value in content.items() if not _is_plain_tensor(value)]
    if strange:
        raise ValueError(f"{path} holds things that are not plain tensors: {first_names(strange)}.")
    claimed = sum(value.numel() * value.element_size() for value in content.values())
    if claimed > 2 * path.stat().st_size:  # an embedding or a norm may have two names, not everything many
        raise ValueError(f"{path} holds tensors of {claimed} bytes that share memory. Refused.")
    return dict(content)


def _is_plain_tensor(value: object) -> bool:
    # What else a pickle may hold (quantized, nested, without content) breaks whatever is done with it later.
    if not isinstance(value, Tensor) or value.is_meta or value.is_quantized or value.is_nested:
        return False
    if value.layout != torch.strided:
        return False
    # Overlapping strides let a tiny file claim a tensor of any size.
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _without_module_prefix(tensors: dict[str, Value]) -> dict[str, Value]:
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
