"""Cache of computed tensors on disk, keyed by everything that they depend on."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .atomic_write import write_atomically
from .content_hash import hash_content

log = logging.getLogger("smrabooth")

FORMAT_VERSION = 1
"""Version in every key; raise it when the meaning of cached tensors changes, so that old files are not read.
"""


class TensorCache:
    """Cache of tensors that are costly to compute (latents, features, optical flow), one file per key.

    `hits` and `misses` count the results that were read and computed since this object was created.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder, self.hits, self.misses = Path(folder), 0, 0

    def get_or_compute(
        self, kind: str, key_parts: Mapping | Sequence, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the tensors of this kind and key, from disk or from `compute`.

        The tensors are on the CPU, contiguous and without gradient. `key_parts` consists of JSON values and
        must name everything that the result depends on: content hashes of inputs and weights, sizes, dtypes.
        The tensors of a file that cannot be read are computed again, with a warning in the log. Where they
        cannot be written a warning is logged, and they are returned all the same.
        """
        path = self.get_path(kind, key_parts)
        cached = _read(path)
        if cached is not None:
            self.hits += 1
            return cached
        self.misses += 1
        tensors = {name: _as_plain_tensor(tensor) for name, tensor in compute().items()}
        try:
            _write(path, kind, tensors)
        except OSError as error:
            log.warning("What was encoded (%s) is not kept for other runs: %s", kind, error)
        return tensors

    def get_path(self, kind: str, key_parts: Mapping | Sequence) -> Path:
        """Return the file of a key, named by the sha256 of the key's canonical JSON.

        Raises ValueError when a part is not a JSON value.
        """
        return self.folder / f"{hashlib.sha256(_encode_key(kind, key_parts)).hexdigest()}.safetensors"


def _encode_key(kind: str, key_parts: Mapping | Sequence) -> bytes:
    key = {"kind": kind, "version": FORMAT_VERSION, "parts": key_parts}
    try:
        return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The cache key of {kind!r} is not made of JSON values ({error}). Give strings, finite numbers, "
            "booleans, lists and dicts with string keys; for a tensor or a file give its hash "
            "(storage.content_hash)."
        ) from error


def _as_plain_tensor(tensor: Tensor) -> Tensor:
    # Cloned, because the file format refuses views that share memory.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    lines = [f"{name} {hash_content(tensors[name])}" for name in sorted(tensors)]
    return hash_content("\n".join(lines).encode())


def _write(path: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with write_atomically(path) as draft:
        save_file(tensors, draft, metadata={"kind": kind, "content": _fingerprint(tensors)})


def _read(path: Path) -> dict[str, Tensor] | None:
    """Read the tensors of a file; None when it is absent or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            content = (file.metadata() or {}).get("content")
    except (SafetensorError, OSError) as error:
        log.warning("Cached tensors %s cannot be read (%s); computing them again.", path.name, error)
        return None
    if content != _fingerprint(tensors):
        log.warning("Cached tensors %s are damaged; computing them again.", path.name)
        return None
    return tensors
