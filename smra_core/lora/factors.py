"""Build a LoRA pair from the tensors that a file has of one layer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..storage.weight_check import READABLE_FLOATS, is_finite
from .adapter import LoraPair
from .scale import AdapterConfig, resolve_scale

_MOST_RANK = 4096
"""Largest rank that is read, above that of any LoRA: the product of larger factors could fill the memory."""


def build_pair(
    name: str, parts: Mapping[str, Tensor], module: str, config: AdapterConfig | None, source: str
) -> LoraPair:
    """Return the pair of a linear from its tensors `a`, `b` and `alpha`, or `diff`, with the scale in B.

    `module` is the linear's name in the file, by which a PEFT configuration knows it. Raises ValueError for
    tensors that are missing, disagree, or are no numbers.
    """
    if "diff" in parts:
        return _build_dense_pair(name, parts, source)
    missing = [factor for factor in "ab" if factor not in parts]
    if missing:
        raise ValueError(f"{source} has {name} without its factor {missing[0].upper()}. Export it again.")
    a, b = parts["a"], parts["b"]
    _check_factors(name, a, b, source)
    configured = None if config is None else config.get_scale(module, a.shape[0], source)
    scale = resolve_scale(name, a.shape[0], parts.get("alpha"), configured, source)
    return _check_finite(name, LoraPair(a.float(), b.float() * scale), source)


def _build_dense_pair(name: str, parts: Mapping[str, Tensor], source: str) -> LoraPair:
    """Return a pair whose product is a change of the whole weight: one factor is the identity."""
    if len(parts) > 1:
        raise ValueError(
            f"{source} has both a change of the whole weight (.diff) of {name} and a low-rank one. Which is "
            "meant is not known: export the LoRA again with one of them."
        )
    diff = parts["diff"]
    if diff.ndim != 2 or 0 in diff.shape or diff.dtype not in READABLE_FLOATS:
        raise ValueError(
            f"{source}: the .diff of {name} is {diff.dtype} of shape {tuple(diff.shape)}; floating-point "
            "numbers of shape (out, in) are needed. Export the LoRA again."
        )
    out_features, in_features = diff.shape
    if out_features >= in_features:
        return _check_finite(name, LoraPair(torch.eye(in_features), diff.float()), source)
    return _check_finite(name, LoraPair(diff.float(), torch.eye(out_features)), source)


def _check_finite(name: str, pair: LoraPair, source: str) -> LoraPair:
    if not (is_finite(pair.a) and is_finite(pair.b)):
        raise ValueError(f"{source}: {name} holds NaN or infinite values. Train or download it again.")
    return pair


def _check_factors(name: str, a: Tensor, b: Tensor, source: str) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise ValueError(
            f"{source}: the factors of {name} are {tuple(a.shape)} and {tuple(b.shape)}; (rank, in) and "
            "(out, rank) are needed. This is another kind of adapter."
        )
    if a.shape[0] > _MOST_RANK:
        raise ValueError(
            f"{source}: {name} has rank {a.shape[0]}; {_MOST_RANK} is the most that is read. It is no LoRA."
        )
    if not {a.dtype, b.dtype} <= READABLE_FLOATS:
        raise ValueError(
            f"{source}: the factors of {name} are {a.dtype} and {b.dtype}; floating-point numbers are "
            "needed. A quantized LoRA cannot be read: get the file in bf16 or fp16."
        )
