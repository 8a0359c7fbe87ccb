"""Reading and writing weight files safely: no code is executed, every key is checked."""

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic_write import write_atomically
from .weight_check import Value, collect_shapes, join_names

INDEX = ".safetensors.index.json"
"""Ending of the file that lists the parts of a model split into several safetensors files."""
_MOST_PARTS = 200
"""Largest number of parts that an index may list."""
_WRAPPERS = ("state_dict", "model", "teacher")
"""Keys under which training programs store the weights, next to optimizer states and counters; without one of
them, the only dict of tensors in the file is taken."""
_MOST_NAMES = 20_000
"""Largest number of tensors in a file."""
SAFETENSORS_ENDINGS = (".safetensors", ".sft")
"""Endings of safetensors files, in lower case. A file is recognized by its content; the ending decides only
what a damaged file is called."""
_BITS = re.compile(r"\d+")
"""The number of bits in safetensors' name of a dtype, such as BF16 or F8_E4M3."""
_STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights. Run `git lfs pull`, or download"),
    (b"<", "a web page, not weights. Sign in where the file is published and download"),
    (b"Rar!", "a RAR archive. Unpack it, and take"),
    (b"7z\xbc\xaf", "a 7-Zip archive. Unpack it, and take"),
    (b"\x1f\x8b", "a gzip archive. Unpack it, and take"),
    (b"\x89HDF", "an HDF5 file of Keras. Get"),
)
"""First bytes of what is often found in the place of a weight file, with its name and the way out."""


class WeightFile(NamedTuple):
    """Content of a weight file."""

    path: Path
    tensors: dict[str, Tensor]
    """Tensors on the CPU, by their names in the file."""
    metadata: dict[str, str]
    """Text metadata of a safetensors file; empty for other formats."""


def read_weight_file(path: str | Path) -> WeightFile:
    """Read the tensors of a safetensors file or of a file by torch.save to the CPU, by their names in it.

    Which of the two it is shows in its content, whatever its ending is (.safetensors, .sft, .pth, .pt, .ckpt,
    .bin). A dict wrapped as `{"state_dict": ...}` is unwrapped and the `module.` prefix of parallel training
    is dropped. Raises ValueError when the file is missing, truncated, compressed, in torch's format from
    before 1.6, holds objects other than plain tensors, or holds no tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file. Choose a weight file ending in .safetensors or .pth.")
    if _read_start(path).startswith(b"GGUF") or path.suffix.lower() == ".gguf":
        raise ValueError(
            f"{path} is a GGUF file, quantized in blocks. Get the model's bf16, fp16 or fp8 .safetensors."
        )
    if path.name.endswith(INDEX):
        parts = [read_weight_file(part) for part in list_parts(path)]
        return WeightFile(path, _join_parts([part.tensors for part in parts], path), {})
    tensors, metadata = _read_safetensors(path) if is_safetensors(path) else _read_pickle(path)
    if not tensors:
        raise ValueError(f"{path} holds no tensors. Download the file again, or choose another.")
    return WeightFile(path, _without_module_prefix(tensors), metadata)


def is_safetensors(path: Path) -> bool:
    """Return whether a file is to be read as safetensors: by its first bytes, or by its ending if damaged.

    A safetensors file begins with the length of its header in 8 bytes and with the header's `{`; a file by
    torch.save is a zip archive.
    """
    start = _read_start(path)
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return True
    return path.suffix.lower() in SAFETENSORS_ENDINGS and not start.startswith(b"PK")


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _name_stranger(path: Path) -> str:
    """Return what a file that holds no weights is, with the way out; empty when that is not known."""
    start = _read_start(path).lstrip()
    if not start:
        return "empty. Download" if path.stat().st_size == 0 else ""
    return next((text for first, text in _STRANGERS if start.startswith(first)), "")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            _refuse_too_many(len(names), path)
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise _build_read_error(path, error) from error
    except RuntimeError as error:  # torch could not map the file into memory
        raise ValueError(
            f"{path} is {path.stat().st_size / 1e9:.1f} GB, which could not be mapped into memory "
            f"({str(error)[:120]}). Free memory, or take the fp8 file of the model."
        ) from error


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes in a weight file; of safetensors only the header is read.

    Raises ValueError as `read_weight_file` does.
    """
    return _read_header(Path(path), lambda stored: tuple(stored.get_shape()), collect_shapes)


def read_value_bytes(path: str | Path) -> dict[str, float]:
    """Read how many bytes a value of each weight takes in a file; of safetensors only the header is read.

    Raises ValueError as `read_weight_file` does.
    """
    return _read_header(
        Path(path),
        lambda stored: _read_bits(stored.get_dtype()) / 8,
        lambda tensors: {name: float(tensor.itemsize) for name, tensor in tensors.items()},
    )


def _read_header(
    path: Path, read: Callable[[Any], Value], collect: Callable[[dict[str, Tensor]], dict[str, Value]]
) -> dict[str, Value]:
    """Return what `read` takes from each entry of a header, or `collect` from the tensors of a file without
    one.
    """
    if path.name.endswith(INDEX):
        return _join_parts([_read_header(part, read, collect) for part in list_parts(path)], path)
    if not path.is_file() or not is_safetensors(path):
        return collect(read_weight_file(path).tensors)
    try:
        # As numpy: torch would reserve memory for the whole file, 28 GB for the 14B, to read the header only.
        with safe_open(path, framework="np") as file:
            names = file.keys()
            _refuse_too_many(len(names), path)
            found = {name: read(file.get_slice(name)) for name in names}
    except SafetensorError as error:
        raise _build_read_error(path, error) from error
    if not found:
        raise ValueError(f"{path} holds no tensors. Download the file again, or choose another.")
    return _without_module_prefix(found)


def _read_bits(dtype: str) -> int:
    found = _BITS.search(dtype)
    return int(found[0]) if found else 8  # BOOL


def list_parts(index: Path) -> list[Path]:
    """List the files named in a `….safetensors.index.json`; raise ValueError unless all lie beside it."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of safetensors ({error}). Download it again.") from error
    if len(names) > _MOST_PARTS or any(Path(name).name != name for name in names):
        raise ValueError(
            f"{index} lists {len(names)} parts, such as {names[0][:80]}; at most {_MOST_PARTS} are "
            "allowed, all beside the index. Download the model again."
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index.parent} lacks {join_names(missing)} of the model's {len(names)} parts. Download them."
        )
    return [index.parent / name for name in names]


def _join_parts(parts: list[dict[str, Value]], path: Path) -> dict[str, Value]:
    joined = {name: value for part in parts for name, value in part.items()}
    if len(joined) < sum(map(len, parts)):
        raise ValueError(f"{path}: two parts of the model hold the same weight. Download it again.")
    return joined


def _build_read_error(path: Path, error: Exception) -> ValueError:
    if stranger := _name_stranger(path):
        return ValueError(f"{path} is {stranger} the file again.")
    return ValueError(f"{path} is not a readable safetensors file ({error}). Download it again.")


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    _refuse_odd_archive(path)
    if path.suffix.lower() in SAFETENSORS_ENDINGS:  # torch.load would take it for safetensors
        raise ValueError(
            f"{path} was written by torch.save and is only called {path.suffix}. Rename it to end in .pt."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds, which all mean that this is no plain weight file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} could not be read as plain weights, so it was not loaded; no code in it was executed "
            f"({reason[:200]}). Get it from its authors again, or a .safetensors version."
        ) from error
    return _unwrap(content, path), {}


def _refuse_odd_archive(path: Path) -> None:
    """Raise ValueError unless the file is an uncompressed zip archive, as torch writes since 1.6.

    The size of such a file limits the memory that reading it takes.
    """
    if not zipfile.is_zipfile(path):
        if stranger := _name_stranger(path):
            raise ValueError(f"{path} is {stranger} the file again.")
        raise ValueError(
            f"{path} is not a weight file of PyTorch 1.6 or newer: it is truncated, or in the older format. "
            "Download it again, or get a .safetensors version."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except Exception as error:  # for a damaged directory zipfile raises many kinds
        raise ValueError(f"{path} is a damaged archive ({str(error)[:120]}). Download it again.") from error
    if is_compressed:
        raise ValueError(
            f"{path} is a compressed archive; PyTorch weight files are not compressed. Get the original file."
        )


def _refuse_too_many(names: int, path: Path) -> None:
    if names > _MOST_NAMES:
        raise ValueError(f"{path} holds {names} tensors; no model used here has more than {_MOST_NAMES}.")


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    content = _unwrap_only_dict(content, path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; a dict of named tensors is needed.")
    _refuse_too_many(len(content), path)
    unnamed = next((key for key in content if not isinstance(key, str)), None)
    if unnamed is not None:  # only its type is shown: nested tuples may be endless as text
        raise ValueError(
            f"{path} names a tensor by a {type(unnamed).__name__}; names must be text. Get another file."
        )
    strange = [key for key, value in content.items() if not _is_plain_tensor(value)]
    if strange:
        raise ValueError(
            f"{path} holds objects that are not plain tensors: {join_names(strange)}. Get a file that holds "
            "weights alone, such as .safetensors."
        )
    num_bytes = sum(value.numel() * value.element_size() for value in content.values())
    if (
        num_bytes > 2 * path.stat().st_size
    ):  # an embedding or a norm may have two names, but not all weights many
        raise ValueError(
            f"{path} holds tensors of {num_bytes} bytes that share memory, in a file of "
            f"{path.stat().st_size} bytes. Get another file."
        )
    return dict(content)


def _unwrap_only_dict(content: object, path: Path) -> object:
    """Return the only dict of tensors in a dict without tensors of its own; other content as it is."""
    if not isinstance(content, Mapping) or any(isinstance(value, Tensor) for value in content.values()):
        return content
    nested = {
        str(name): value
        for name, value in content.items()
        if isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())
    }
    if len(nested) > 1:
        raise ValueError(
            f"{path} holds {len(nested)} sets of weights: {join_names(list(nested))}. Get a file "
            "with one of them."
        )
    return next(iter(nested.values())) if nested else content


def _is_plain_tensor(value: object) -> bool:
    # Other tensors that a pickle may hold (quantized, nested, on the meta device) would fail in later code.
    if not isinstance(value, Tensor) or value.is_meta or value.is_quantized or value.is_nested:
        return False
    if value.layout != torch.strided:
        return False
    # With overlapping strides a tiny file could hold a tensor of any size.
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _without_module_prefix(tensors: dict[str, Value]) -> dict[str, Value]:
    if all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def write_weight_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: `path` always holds the whole old file or the whole new one.

    Equal tensors and metadata give equal bytes.
    """
    with write_atomically(path) as draft:
        save_file(dict(tensors), draft, dict(metadata))
        sort_metadata(draft)


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file by key, in place.

    The library writes it in the order of a hash table, which is another in every process, so that equal files
    would differ in their hash.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the same content, so as long as before; the rest is filled with spaces
            file.seek(8)
            file.write(text.ljust(length))
