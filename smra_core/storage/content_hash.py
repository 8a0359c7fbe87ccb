"""Hashes of tensors and files: a fingerprint of weights by samples, and a hash of all bytes."""

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from .weight_file import INDEX, list_parts

_WHOLE = 64 << 20
"""Largest size in bytes of a file that is hashed as a whole."""
_PIECE, _PIECES = 1 << 16, 256
"""Bytes in each hashed piece of a larger file, and number of pieces."""


def fingerprint_weights(path: Path) -> str:
    """Return the sha256 of a file, of the parts in an index, or of all weight files and configs in a folder.

    It depends on the content alone, not on the path of the file. Of a file over 64 MB only its size and 256
    pieces spread over it are hashed: a retrained model differs everywhere, and reading 30 GB before every
    run would cost more than it protects.
    """
    digest = hashlib.sha256()
    kinds = ("*.safetensors", "*.json", "*.bin", "*.model")
    files = sorted(f for kind in kinds for f in path.rglob(kind)) if path.is_dir() else [path]
    if path.name.endswith(INDEX):
        files = list_parts(path)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode() if path.is_dir() else f"{size} ".encode())
        _hash_pieces(file, size, digest)
    return digest.hexdigest()


def _hash_pieces(file: Path, size: int, digest) -> None:
    with open(file, "rb") as content:
        if size <= _WHOLE:
            digest.update(content.read())
            return
        for piece in range(_PIECES):
            content.seek(piece * (size - _PIECE) // (_PIECES - 1))
            digest.update(content.read(_PIECE))


_CHUNK = 1 << 20


def hash_content(content: Tensor | bytes | str | os.PathLike) -> str:
    """Return the sha256 in hex of a tensor (shape, dtype, values), of bytes, or of a file (a str is a path).

    Files are read in pieces. The device and strides of a tensor make no difference; a file and its bytes have
    the same hash.
    """
    digest = hashlib.sha256()
    if isinstance(content, Tensor):
        digest.update(f"{tuple(content.shape)} {content.dtype} ".encode())
        flat = content.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(content, bytes):
        digest.update(content)
    else:
        with open(content, "rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
    return digest.hexdigest()
