"""Read LoRA files in every dialect that WAN LoRAs are published in."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..storage.weight_check import READABLE_FLOATS, join_names
from ..storage.weight_file import read_weight_file
from ..wan.spec import Role, WanSpec, parse_linear
from .adapter import Lora, LoraPair, check_fit
from .dialects import detect_other_algorithm, parse_key
from .metadata import LoraMetadata
from .scale import ADAPTER_WEIGHTS, AdapterConfig, read_adapter_config, resolve_scale

log = logging.getLogger("smrabooth")

_MOST_RANK = 4096
"""Largest rank that is read, above that of any LoRA: the product of larger factors could fill the memory."""


class LoadedLora(NamedTuple):
    """A LoRA read from a file."""

    lora: Lora
    metadata: LoraMetadata
    dialect: str
    """Dialect of most keys."""
    ignored: list[str]
    """Names in the file that belong to no linear of a WAN block: other modules, projectors, norms."""


def load_lora(path: str | Path, spec: WanSpec | None = None) -> LoadedLora:
    """Read a LoRA in any of the known dialects, as float32 with the scales baked into B.

    The dialects are the names of ComfyUI, DiffSynth (with and without `pipe.dit.`), the SMRABooth release,
    PEFT (a file, or the folder with its adapter_config.json), diffusers, kohya (`lora_unet_`) and LyCORIS
    (`lycoris_`). Raises ValueError when no name matches, for other kinds of adapter, when a factor of a pair
    is missing or has a wrong shape, when ranks and alphas disagree, or when the LoRA does not fit `spec`.
    """
    path = Path(path)
    file = read_weight_file(path / ADAPTER_WEIGHTS if path.is_dir() else path)
    config = read_adapter_config(file.path, file.metadata)
    loaded = parse_lora(file.tensors, file.path.name, file.metadata, config)
    if spec is not None:
        shapes = {name: spec.linear_shape(name) for name in spec.linear_names()}
        check_fit(shapes, loaded.lora, file.path.name, spec.name)
    return loaded


def parse_lora(
    tensors: Mapping[str, Tensor],
    source: str,
    metadata: Mapping[str, str] | None = None,
    config: AdapterConfig | None = None,
) -> LoadedLora:
    """Read a LoRA from tensors in memory; `source` is their name in messages. Raises ValueError as
    `load_lora`.
    """
    _refuse_other_algorithms(tensors, source)
    keys = _sort_keys(tensors, source)
    if not keys.factors:
        raise ValueError(
            f"{source} has no LoRA of a WAN block. Its {len(keys.ignored)} tensors look like: "
            f"{join_names(keys.ignored)}; needed are names such as "
            "'diffusion_model.blocks.0.self_attn.q.lora_A.weight'. It is for another "
            "model, or no LoRA: choose another file."
        )
    lora = {
        name: _build_pair(name, parts, keys.modules[name], config, source)
        for name, parts in _sort_by_position(keys.factors)
    }
    own = LoraMetadata.from_file(metadata or {})
    _check_own_rank(own, lora, source)
    _warn_of_unused_changes(keys.ignored, source)
    dialect = max(keys.dialects, key=keys.dialects.__getitem__)
    return LoadedLora(lora, own, dialect, keys.ignored)


class _SortedKeys(NamedTuple):
    """Tensors of a LoRA file, sorted by the linear that they belong to."""

    factors: dict[str, dict[str, Tensor]]
    """Tensors `a`, `b` and `alpha` of each linear, by native name."""
    modules: dict[str, str]
    """Name of each linear in the file, by native name."""
    dialects: Counter[str]
    """Number of keys in each dialect."""
    ignored: list[str]
    """Keys that belong to no linear of a WAN block."""


def _sort_keys(tensors: Mapping[str, Tensor], source: str) -> _SortedKeys:
    keys = _SortedKeys({}, {}, Counter(), [])
    for key, tensor in tensors.items():
        parsed = parse_key(key)
        if parsed is None:
            keys.ignored.append(key)
            continue
        factors = keys.factors.setdefault(parsed.name, {})
        if parsed.factor in factors:
            raise ValueError(
                f"{source} has {parsed.factor} of {parsed.name} twice, second as {key[:120]!r}. Export the "
                "LoRA again."
            )
        factors[parsed.factor] = tensor
        keys.modules[parsed.name] = parsed.module
        keys.dialects[parsed.dialect] += 1
    return keys


def _refuse_other_algorithms(tensors: Mapping[str, Tensor], source: str) -> None:
    kinds = [(key, *algorithm) for key in tensors if (algorithm := detect_other_algorithm(key))]
    on_blocks = [(key, kind) for key, kind, on_block in kinds if on_block]
    if not on_blocks and kinds and not any(parse_key(key) for key in tensors):
        on_blocks = [(key, kind) for key, kind, _ in kinds]
    if on_blocks:
        key, kind = on_blocks[0]
        raise ValueError(
            f"{source} is {kind}, not a plain LoRA ({len(on_blocks)} tensors such as {key[:120]}). Load it "
            "with ComfyUI's own LoRA loader, or extract a LoRA from it first."
        )


def _warn_of_unused_changes(ignored: list[str], source: str) -> None:
    changes = [key for key in ignored if key.endswith((".diff", ".diff_b"))]
    if changes:
        log.warning(
            "%s also changes %d norms and biases, such as %s. Only its low-rank pairs are used here; "
            "ComfyUI's own LoRA loader applies all of it.", source, len(changes), changes[0][:120],
        )  # fmt: skip


def _check_own_rank(metadata: LoraMetadata, lora: Lora, source: str) -> None:
    ranks = sorted({pair.rank for pair in lora.values()})
    if metadata.rank and ranks != [metadata.rank]:
        raise ValueError(
            f"{source} says rank {metadata.rank}, its factors have {ranks}. It was changed after training: "
            "train it again, or remove its smrabooth metadata if the change is intended."
        )


def _sort_by_position(factors: Mapping[str, dict[str, Tensor]]) -> Iterable[tuple[str, dict[str, Tensor]]]:
    roles = list(Role)

    def get_position(item):
        block, path, role = parse_linear(item[0])
        return block, roles.index(role), role.paths.index(path)

    return sorted(factors.items(), key=get_position)


def _build_pair(
    name: str, parts: Mapping[str, Tensor], module: str, config: AdapterConfig | None, source: str
) -> LoraPair:
    missing = [factor for factor in "ab" if factor not in parts]
    if missing:
        raise ValueError(f"{source} has {name} without its factor {missing[0].upper()}. Export it again.")
    a, b = parts["a"], parts["b"]
    _check_factors(name, a, b, source)
    configured = None if config is None else config.get_scale(module, a.shape[0], source)
    scale = resolve_scale(name, a.shape[0], parts.get("alpha"), configured, source)
    pair = LoraPair(a.float(), b.float() * scale)
    if not (pair.a.isfinite().all() and pair.b.isfinite().all()):
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
