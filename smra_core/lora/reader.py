"""LoRA files: ours, in the names that ComfyUI loads, and everybody else's dialects."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..storage.weight_check import READABLE_FLOATS, first_names
from ..storage.weight_file import read_weight_file
from ..wan.spec import Role, WanSpec, parse_linear
from .adapter import Lora, LoraPair, check_fit
from .dialects import detect_other_algorithm, parse_key
from .metadata import LoraMetadata
from .scale import ADAPTER_WEIGHTS, AdapterConfig, read_adapter_config, resolve_scale

log = logging.getLogger("smrabooth")

_MOST_RANK = 4096
"""Above any LoRA; a file that says more would make products that fill the memory."""


class LoadedLora(NamedTuple):
    lora: Lora
    metadata: LoraMetadata
    dialect: str
    ignored: list[str]
    """Names in the file that are no linear of a WAN block: other modules, projectors, norms."""


def load_lora(path: str | Path, spec: WanSpec | None = None) -> LoadedLora:
    """Read a LoRA of any of the dialects that WAN LoRAs are found in; float32, scales baked into B.

    Known are ComfyUI's names, DiffSynth's (with and without `pipe.dit.`), the SMRABooth release's, PEFT's
    (a file, or the folder with its adapter_config.json), diffusers', kohya's `lora_unet_` and LyCORIS'
    `lycoris_`. ValueError when nothing matches, for other kinds of adapter, when half of a pair is missing or
    misshapen, when ranks and alphas disagree, or when it does not fit `spec`.
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
    """The LoRA in tensors that are in memory already; `source` is what errors call them (as load_lora's)."""
    _refuse_other_algorithms(tensors, source)
    factors, modules, dialects, ignored = _sorted_out(tensors, source)
    if not factors:
        raise ValueError(
            f"{source} has no LoRA of a WAN block. Its {len(ignored)} tensors look like: "
            f"{first_names(ignored)}; needed are names such as "
            "'diffusion_model.blocks.0.self_attn.q.lora_A.weight'. It is for another model, or no LoRA."
        )
    lora = {
        name: _build_pair(name, parts, modules[name], config, source)
        for name, parts in _sort_by_position(factors)
    }
    own = LoraMetadata.from_file(metadata or {})
    _check_own_rank(own, lora, source)
    _warn_of_unused_changes(ignored, source)
    return LoadedLora(lora, own, max(dialects, key=dialects.__getitem__), ignored)


Factors = dict[str, dict[str, Tensor]]


def _sorted_out(
    tensors: Mapping[str, Tensor], source: str
) -> tuple[Factors, dict[str, str], Counter[str], list[str]]:
    """Halves by native name, what the file calls each module, how often each dialect occurs, the rest."""
    factors: Factors = {}
    modules: dict[str, str] = {}
    dialects: Counter[str] = Counter()
    ignored = []
    for key, tensor in tensors.items():
        found = parse_key(key)
        if found is None:
            ignored.append(key)
            continue
        if found.half in factors.setdefault(found.name, {}):
            raise ValueError(
                f"{source} has {found.half} of {found.name} twice, second as {key[:120]!r}. Export it anew."
            )
        factors[found.name][found.half] = tensor
        modules[found.name] = found.module
        dialects[found.dialect] += 1
    return factors, modules, dialects, ignored


def _refuse_other_algorithms(tensors: Mapping[str, Tensor], source: str) -> None:
    kinds = [(key, *found) for key in tensors if (found := detect_other_algorithm(key))]
    on_blocks = [(key, kind) for key, kind, on_block in kinds if on_block]
    if not on_blocks and kinds and not any(parse_key(key) for key in tensors):
        on_blocks = [(key, kind) for key, kind, _ in kinds]
    if on_blocks:
        key, kind = on_blocks[0]
        raise ValueError(
            f"{source} is {kind}, not a plain LoRA ({len(on_blocks)} tensors such as {key[:120]}). Load it "
            "with the stock LoRA loader, or extract a LoRA from it first."
        )


def _warn_of_unused_changes(ignored: list[str], source: str) -> None:
    changes = [key for key in ignored if key.endswith((".diff", ".diff_b"))]
    if changes:
        log.warning(
            "%s also changes %d norms and biases, such as %s. Only its low-rank pairs are used here; the "
            "stock LoRA loader takes all of it.", source, len(changes), changes[0][:120],
        )  # fmt: skip


def _check_own_rank(metadata: LoraMetadata, lora: Lora, source: str) -> None:
    ranks = sorted({pair.rank for pair in lora.values()})
    if metadata.rank and ranks != [metadata.rank]:
        raise ValueError(
            f"{source} says rank {metadata.rank}, its factors have {ranks}. It was altered after training: "
            "train it again, or remove its smrabooth metadata if the change is wanted."
        )


def _sort_by_position(factors: Mapping[str, dict[str, Tensor]]) -> Iterable[tuple[str, dict[str, Tensor]]]:
    roles = list(Role)

    def place(item):
        block, path, role = parse_linear(item[0])
        return block, roles.index(role), role.paths.index(path)

    return sorted(factors.items(), key=place)


def _build_pair(
    name: str, parts: Mapping[str, Tensor], module: str, config: AdapterConfig | None, source: str
) -> LoraPair:
    missing = [half for half in "ab" if half not in parts]
    if missing:
        raise ValueError(f"{source} has {name} without its factor {missing[0].upper()}. Export it anew.")
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
        raise ValueError(f"{source}: {name} has rank {a.shape[0]}; {_MOST_RANK} is the most that is read.")
    if not {a.dtype, b.dtype} <= READABLE_FLOATS:
        raise ValueError(
            f"{source}: the factors of {name} are {a.dtype} and {b.dtype}; floating-point numbers are "
            "needed. A quantized LoRA cannot be read: get the file in bf16 or fp16."
        )
