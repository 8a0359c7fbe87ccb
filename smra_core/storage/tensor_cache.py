"""Computed tensors kept on disk under a name made from everything they depend on."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .atomic_write import atomic_write
from .content_hash import content_hash

log = logging.getLogger("smrabooth")

FORMAT_VERSION = 1
"""Part of every key: raise it when the meaning of cached tensors changes, to leave old files unread."""


class TensorCache:
    """Tensors that are costly to compute (latents, features, optical flow), computed once per key.

    `hits` and `misses` count what was read and what was computed since the cache was made.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder, self.hits, self.misses = Path(folder), 0, 0

    def get_or_compute(
        self, kind: str, key_parts: Mapping | Sequence, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors of this kind and key, from disk or from `compute`: on the CPU, contiguous, no gradient.

        `key_parts` is made of JSON values and must name all that the result depends on: content hashes of
        inputs and weights, sizes, dtypes. A file that cannot be read is computed again, with a log line.
        """
        path = self.get_path(kind, key_parts)
        kept = _read(path)
        if kept is not None:
            self.hits += 1
            return kept
        self.misses += 1
        tensors = {name: _as_plain_tensor(tensor) for name, tensor in compute().items()}
        _write(path, kind, tensors)
        return tensors

    def get_path(self, kind: str, key_parts: Mapping | Sequence) -> Path:
        """File of a key: the sha256 of its canonical JSON. ValueError when a part is not a JSON value."""
        return self.folder / f"{hashlib.sha256(_encode_key(kind, key_parts)).hexdigest()}.safetensors"


def _encode_key(kind: str, key_parts: Mapping | Sequence) -> bytes:
    whole = {"kind": kind, "version": FORMAT_VERSION, "parts": key_parts}
    try:
        return json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The cache key of {kind!r} is not made of JSON values ({error}). Give strings, finite numbers, "
            "booleans, lists and dicts with string keys; for a tensor or a file give its content_hash."
        ) from error


def _as_plain_tensor(tensor: Tensor) -> Tensor:
    # A clone of its own, because the file format refuses views that share memory.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    lines = [f"{name} {content_hash(tensors[name])}" for name in sorted(tensors)]
    return content_hash("\n".join(lines).encode())


def _write(path: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with atomic_write(path) as draft:
        save_file(tensors, draft, metadata={"kind": kind, "content": _fingerprint(tensors)})


def _read(path: Path) -> dict[str, Tensor] | None:
    """The file's tensors; None when it is absent or damaged."""
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
