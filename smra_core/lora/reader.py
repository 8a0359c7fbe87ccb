"""Read LoRA files in every dialect that WAN LoRAs are published in."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..storage.weight_file import read_weight_file
from ..wan.spec import Role, WanSpec, parse_linear
from .account import describe_use
from .adapter import Lora, check_fit
from .choice import ChosenKeys, choose_keys
from .dialects import detect_other_algorithm, parse_key
from .factors import build_pair
from .further_layers import FurtherParts, collect_further_parts
from .metadata import LoraMetadata
from .scale import AdapterConfig, describe_scale, find_weights, read_adapter_config

log = logging.getLogger("smrabooth")


class LoadedLora(NamedTuple):
    """A LoRA read from a file."""

    lora: Lora
    metadata: LoraMetadata
    dialect: str
    """Dialect of most keys."""
    used: int
    """Number of the file's tensors that `lora` is made of."""
    unused: list[tuple[str, str]]
    """Kind and name of each tensor that is not of `lora`: of other layers, another expert or adapter."""
    further: FurtherParts
    """Those of them that are changes of other layers, which a plan of all layers uses where they fit."""
    account: str = ""
    """Sentence on how many tensors are used, and what the others are."""
    notes: tuple[str, ...] = ()
    """Sentences on what the file leaves open and how it was read: its scale, its expert, its adapter."""

    @property
    def ignored(self) -> list[str]:
        """Names in the file that are not of `lora`."""
        return [name for _, name in self.unused]


def load_lora(
    path: str | Path,
    spec: WanSpec | None = None,
    expert: str | None = None,
    adapter: str | None = None,
    log_unused: bool = True,
) -> LoadedLora:
    """Read a LoRA in any of the known dialects, as float32 with the scales baked into B.

    The dialects are the names of ComfyUI, DiffSynth (with and without `pipe.dit.`), the SMRABooth release,
    PEFT (a file with its adapter_config.json beside it, or their folder), diffusers, kohya (`lora_unet_`) and
    LyCORIS (`lycoris_`), each with any stack of known words before `blocks`. A change of a linear's whole
    weight (`.diff`) is read as a pair of full rank. `expert` (`high` or `low`) chooses where a file holds
    both experts of Wan 2.2, and `adapter` where it holds several adapters; both are needed only then. What of
    the file is not used is logged as a warning, unless the caller uses further layers and tells it itself;
    what was assumed is logged as information.

    Raises ValueError when no name matches, for other kinds of adapter, when a factor of a pair is missing or
    has a wrong shape, when ranks and alphas disagree, when a file holds two experts or adapters and none is
    chosen, or when the LoRA does not fit `spec`.
    """
    path = Path(path)
    file = read_weight_file(find_weights(path) if path.is_dir() else path)
    is_peft = path.is_dir() or any(key.startswith("base_model.") for key in file.tensors)
    _refuse_other_algorithms(file.tensors, file.path.name)
    chosen = choose_keys(file.tensors, file.path.name, expert, adapter)
    config = read_adapter_config(file.path, file.metadata, is_peft, chosen.expert)
    loaded = _build_lora(file.tensors, chosen, file.path.name, file.metadata, config, log_unused)
    if spec is not None:
        shapes = {name: spec.linear_shape(name) for name in spec.linear_names()}
        check_fit(shapes, loaded.lora, file.path.name, spec.name)
    return loaded


def parse_lora(
    tensors: Mapping[str, Tensor],
    source: str,
    metadata: Mapping[str, str] | None = None,
    expert: str | None = None,
    adapter: str | None = None,
    log_unused: bool = True,
) -> LoadedLora:
    """Read a LoRA from tensors in memory; `source` is their name in messages.

    Logs and raises ValueError as `load_lora` does.
    """
    _refuse_other_algorithms(tensors, source)
    chosen = choose_keys(tensors, source, expert, adapter)
    return _build_lora(tensors, chosen, source, metadata or {}, None, log_unused)


def _build_lora(
    tensors: Mapping[str, Tensor],
    chosen: ChosenKeys,
    source: str,
    metadata: Mapping[str, str],
    config: AdapterConfig | None,
    log_unused: bool,
) -> LoadedLora:
    keys = _sort_keys(tensors, chosen, source)
    lora = {
        name: build_pair(name, parts, keys.modules[name], config, source)
        for name, parts in _sort_by_position(keys.factors)
    }
    own = LoraMetadata.from_file(metadata)
    _check_own_rank(own, lora, source)
    dialect = max(keys.dialects, key=keys.dialects.__getitem__)
    account = describe_use(len(chosen.parsed), len(lora), chosen.unused)
    scale = describe_scale(keys.factors, metadata, config, own.rank > 0, dialect == "peft")
    notes = (*chosen.notes, *_describe_dense(keys.factors), *([scale] if scale else ()))
    if chosen.unused and log_unused:
        log.warning("%s: %s", source, account)
    for note in notes:
        log.info("%s: %s", source, note)
    further = collect_further_parts(tensors, chosen, config, source)
    return LoadedLora(lora, own, dialect, len(chosen.parsed), chosen.unused, further, account, notes)


class _SortedKeys(NamedTuple):
    """Tensors of a LoRA file, sorted by the linear that they belong to."""

    factors: dict[str, dict[str, Tensor]]
    """Tensors `a`, `b`, `alpha` and `diff` of each linear, by native name."""
    modules: dict[str, str]
    """Name of each linear in the file, by native name."""
    dialects: Counter[str]
    """Number of keys in each dialect."""


def _sort_keys(tensors: Mapping[str, Tensor], chosen: ChosenKeys, source: str) -> _SortedKeys:
    keys = _SortedKeys({}, {}, Counter())
    for key, parsed in chosen.parsed.items():
        factors = keys.factors.setdefault(parsed.name, {})
        if parsed.factor in factors:
            raise ValueError(
                f"{source} has {parsed.factor} of {parsed.name} twice, second as {key[:120]!r}. Export the "
                "LoRA again."
            )
        factors[parsed.factor] = tensors[key]
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


def _describe_dense(factors: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    dense = [name for name, parts in factors.items() if "diff" in parts]
    if not dense:
        return []
    return [
        f"{len(dense)} changes of whole weights (.diff), such as that of {dense[0]}, are used as they are, "
        "at full rank; they take as much memory and time as the linear itself."
    ]


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
