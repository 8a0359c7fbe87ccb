"""LoRA files: ours, in the names that ComfyUI loads, and everybody else's dialects."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..storage.atomic_write import replacing
from ..storage.weight_file import READABLE_FLOATS, listed, read_weight_file
from ..wan.module_names import diffusers_linear
from ..wan.spec import SPECS, Role, WanSpec, parse_linear
from .adapter import Lora, LoraPair
from .dialects import other_algorithm, parse_key
from .scale import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, adapter_config, config_text, scale_of

log = logging.getLogger("smrabooth")

_OWN = "smrabooth."
_MOST_RANK = 4096
"""Above any LoRA; a file that says more would make products that fill the memory."""


@dataclass(frozen=True)
class LoraMetadata:
    """What a LoRA file says about itself."""

    role: str = ""
    """`subject` or `motion`; empty in files of others."""
    plan: str = ""
    """As SparsePlan.parse takes it."""
    rank: int = 0
    base_model: str = ""
    captions: tuple[str, ...] = ()
    steps: int = 0
    name: str = ""
    version: str = ""

    def to_file(self) -> dict[str, str]:
        """Metadata of a safetensors file: our own keys, and those that LoRA managers show."""
        own = {_OWN + key: json.dumps(value) for key, value in vars(self).items()}
        return own | {
            "format": "pt",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "wan2.1/lora",
            "modelspec.title": self.name,
            "modelspec.description": f"SMRABooth {self.role} LoRA for {self.base_model}",
            "modelspec.trigger_phrase": " | ".join(self.captions),
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": str(self.rank),
            "ss_steps": str(self.steps),
            "ss_base_model_version": self.base_model,
        }

    @classmethod
    def from_file(cls, metadata: Mapping[str, str]) -> "LoraMetadata":
        """Our keys; what is missing or of another type keeps its default, for the file may be a
        stranger's.
        """
        values = {}
        for key, default in vars(cls()).items():
            try:
                value = json.loads(metadata[_OWN + key])
            except (KeyError, ValueError):
                continue
            value = tuple(map(str, value)) if isinstance(value, list) else value
            if type(value) is type(default):
                values[key] = value
        return cls(**values)


class LoadedLora(NamedTuple):
    lora: Lora
    metadata: LoraMetadata
    dialect: str
    ignored: list[str]
    """Names in the file that are no linear of a WAN block: other modules, projectors, norms."""


def save_lora(path: str | Path, lora: Lora, metadata: LoraMetadata, dtype=torch.float32) -> None:
    """Write `diffusion_model.blocks.N.….lora_A.weight` and `lora_B`, the scale baked into B, no alpha.

    ComfyUI's stock LoRA loader takes every module of it.
    """
    _write(path, {f"diffusion_model.{name}": pair for name, pair in lora.items()}, metadata.to_file(), dtype)


def _write(path: str | Path, named: Mapping[str, LoraPair], metadata: dict[str, str], dtype) -> None:
    tensors = {}
    for name, pair in named.items():
        tensors[f"{name}.lora_A.weight"] = pair.a.detach().to("cpu", dtype).contiguous()
        tensors[f"{name}.lora_B.weight"] = (pair.scale * pair.b.detach()).to("cpu", dtype).contiguous()
    with replacing(path) as draft:
        save_file(tensors, draft, metadata)


def load_lora(path: str | Path, spec: WanSpec | None = None) -> LoadedLora:
    """Read a LoRA of any of the dialects that WAN LoRAs are found in; float32, scales baked into B.

    Known are ComfyUI's names, DiffSynth's (with and without `pipe.dit.`), the SMRABooth release's, PEFT's
    (a file, or the folder with its adapter_config.json), diffusers', kohya's `lora_unet_` and LyCORIS'
    `lycoris_`. ValueError when nothing matches, for other kinds of adapter, when half of a pair is missing or
    misshapen, when ranks and alphas disagree, or when it does not fit `spec`.
    """
    path = Path(path)
    file = read_weight_file(path / ADAPTER_WEIGHTS if path.is_dir() else path)
    config = adapter_config(file.path, file.metadata)
    loaded = parse_lora(file.tensors, file.path.name, file.metadata, config)
    if spec is not None:
        _check_spec(loaded.lora, spec, file.path.name)
    return loaded


def parse_lora(
    tensors: Mapping[str, Tensor],
    source: str,
    metadata: Mapping[str, str] | None = None,
    config: AdapterConfig | None = None,
) -> LoadedLora:
    """The LoRA in tensors that are in memory already; `source` is what errors call them (as load_lora's)."""
    _refuse_other_algorithms(tensors, source)
    halves, modules, dialects, ignored = _sorted_out(tensors, source)
    if not halves:
        raise ValueError(
            f"{source} has no LoRA of a WAN block. Its {len(ignored)} tensors look like: {listed(ignored)}; "
            "needed are names such as 'diffusion_model.blocks.0.self_attn.q.lora_A.weight'. It is for "
            "another model, or no LoRA."
        )
    lora = {name: _pair(name, parts, modules[name], config, source) for name, parts in _in_order(halves)}
    own = LoraMetadata.from_file(metadata or {})
    _check_own_rank(own, lora, source)
    _tell_left_out(ignored, source)
    return LoadedLora(lora, own, max(dialects, key=dialects.__getitem__), ignored)


Halves = dict[str, dict[str, Tensor]]


def _sorted_out(
    tensors: Mapping[str, Tensor], source: str
) -> tuple[Halves, dict[str, str], Counter[str], list[str]]:
    """Halves by native name, what the file calls each module, how often each dialect occurs, the rest."""
    halves: Halves = {}
    modules: dict[str, str] = {}
    dialects: Counter[str] = Counter()
    ignored = []
    for key, tensor in tensors.items():
        found = parse_key(key)
        if found is None:
            ignored.append(key)
            continue
        if found.half in halves.setdefault(found.name, {}):
            raise ValueError(
                f"{source} has {found.half} of {found.name} twice, second as {key[:120]!r}. Export it anew."
            )
        halves[found.name][found.half] = tensor
        modules[found.name] = found.module
        dialects[found.dialect] += 1
    return halves, modules, dialects, ignored


def _refuse_other_algorithms(tensors: Mapping[str, Tensor], source: str) -> None:
    kinds = [(key, *found) for key in tensors if (found := other_algorithm(key))]
    on_blocks = [(key, kind) for key, kind, on_block in kinds if on_block]
    if not on_blocks and kinds and not any(parse_key(key) for key in tensors):
        on_blocks = [(key, kind) for key, kind, _ in kinds]
    if on_blocks:
        key, kind = on_blocks[0]
        raise ValueError(
            f"{source} is {kind}, not a plain LoRA ({len(on_blocks)} tensors such as {key[:120]}). Load it "
            "with the stock LoRA loader, or extract a LoRA from it first."
        )


def _tell_left_out(ignored: list[str], source: str) -> None:
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


def _in_order(halves: Mapping[str, dict[str, Tensor]]) -> Iterable[tuple[str, dict[str, Tensor]]]:
    roles = list(Role)

    def place(item):
        block, path, role = parse_linear(item[0])
        return block, roles.index(role), role.paths.index(path)

    return sorted(halves.items(), key=place)


def _pair(
    name: str, parts: Mapping[str, Tensor], module: str, config: AdapterConfig | None, source: str
) -> LoraPair:
    missing = [half for half in "ab" if half not in parts]
    if missing:
        raise ValueError(f"{source} has {name} without its factor {missing[0].upper()}. Export it anew.")
    a, b = parts["a"], parts["b"]
    _check_factors(name, a, b, source)
    configured = None if config is None else config.scale(module, a.shape[0], source)
    scale = scale_of(name, a.shape[0], parts.get("alpha"), configured, source)
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
            "needed. A quantised LoRA cannot be read: get the file in bf16 or fp16."
        )


def _check_spec(lora: Lora, spec: WanSpec, source: str) -> None:
    unfit = [name for name, pair in lora.items() if not _fits(name, pair, spec)]
    if not unfit:
        return
    name, pair = unfit[0], lora[unfit[0]]
    blocks = 1 + max(parse_linear(name).block for name in lora)
    known = [other.name for other in SPECS if all(_fits(n, p, other) for n, p in lora.items())]
    raise ValueError(
        f"{source} does not fit {spec.name}: {name} is for a linear of {_shape(pair)} (out, in), the model's "
        f"is {spec.linear_shape(name)}; the LoRA reaches over {blocks} blocks, the model has {spec.blocks}; "
        f"{len(unfit)} of {len(lora)} modules do not fit. "
        + (f"It was trained on {known[0]}: load that model. " if known else "")
        + "Use a LoRA trained on this model."
    )


def _shape(pair: LoraPair) -> tuple[int, int]:
    return pair.b.shape[0], pair.a.shape[1]


def _fits(name: str, pair: LoraPair, spec: WanSpec) -> bool:
    return parse_linear(name).block < spec.blocks and _shape(pair) == spec.linear_shape(name)


DIALECTS_OUT = ("comfyui", "diffusers", "kohya", "peft")


def convert_lora(source: str | Path, target: str | Path, dialect: str = "comfyui") -> None:
    """Write a LoRA under the names of one of DIALECTS_OUT; metadata is kept.

    `peft` writes a folder, as PeftModel.from_pretrained takes it, with diffusers' module names.
    """
    loaded = load_lora(source)
    metadata = loaded.metadata.to_file()
    if dialect == "comfyui":
        save_lora(target, loaded.lora, loaded.metadata)
    elif dialect == "diffusers":
        named = {f"transformer.{diffusers_linear(name)}": pair for name, pair in loaded.lora.items()}
        _write(target, named, metadata, torch.float32)
    elif dialect == "kohya":
        _write_kohya(target, loaded.lora, metadata)
    elif dialect == "peft":
        _write_peft(Path(target), loaded)
    else:
        raise ValueError(f"Dialect {dialect!r} is not known; give one of {DIALECTS_OUT}.")


def _write_kohya(target: str | Path, lora: Lora, metadata: dict[str, str]) -> None:
    tensors = {}
    for name, pair in lora.items():
        module = "lora_unet_" + name.replace(".", "_")
        tensors[f"{module}.lora_down.weight"] = pair.a.detach().clone()
        tensors[f"{module}.lora_up.weight"] = pair.b.detach().clone()
        tensors[f"{module}.alpha"] = torch.tensor(float(pair.rank))
    with replacing(target) as draft:
        save_file(tensors, draft, metadata)


def _write_peft(folder: Path, loaded: LoadedLora) -> None:
    if folder.suffix == ".safetensors":
        raise ValueError(
            f"PEFT keeps an adapter in a folder; give {folder.with_suffix('')} instead of {folder}."
        )
    named = {diffusers_linear(name): pair for name, pair in loaded.lora.items()}
    prefixed = {f"base_model.model.{name}": pair for name, pair in named.items()}
    _write(folder / ADAPTER_WEIGHTS, prefixed, loaded.metadata.to_file(), torch.float32)
    ranks = {name: pair.rank for name, pair in named.items()}
    with replacing(folder / ADAPTER_CONFIG) as draft:
        draft.write_text(config_text(ranks, loaded.metadata.base_model), encoding="utf-8")
