"""LoRA files: ours, in the names that ComfyUI loads, and everybody else's dialects."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from .atomic_file import replacing
from .encoders.weight_file import read_weight_file
from .lora import Lora, LoraPair
from .native_names import diffusers_linear, native_linear
from .wan import Role, WanSpec, parse_linear

_OWN = "smrabooth."
_PREFIXES = (
    "base_model.model.diffusion_model.",
    "base_model.model.",
    "diffusion_model.",
    "pipe.dit.",
    "transformer.",
    "dit.",
)
_FACTORS = {"lora_A": "a", "lora_down": "a", "lora_B": "b", "lora_up": "b"}
_FACTOR = re.compile(r"^(.+)\.(lora_A|lora_B|lora_down|lora_up)(?:\.(\w+))?\.weight$")
_FLAT = re.compile(r"^(?:lora_unet|lycoris)_+blocks_(\d+)_(.+)$")
_FLAT_PATHS = {path.replace(".", "_"): path for role in Role for path in role.paths}
_SHOWN = 4


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

    Known are ComfyUI's names, DiffSynth's (with and without `pipe.dit.`), the SMRABooth release's, PEFT's,
    diffusers', kohya's `lora_unet_` and LyCORIS' `lycoris_`. ValueError when nothing matches, when half of a
    pair is missing or misshapen, or when it does not fit `spec`.
    """
    file = read_weight_file(path)
    loaded = parse_lora(file.tensors, file.path.name, file.metadata)
    if spec is not None:
        _check_spec(loaded.lora, spec, file.path.name)
    return loaded


def parse_lora(
    tensors: Mapping[str, Tensor], source: str, metadata: Mapping[str, str] | None = None
) -> LoadedLora:
    """The LoRA in tensors that are in memory already; `source` is what errors call them."""
    halves: dict[str, dict[str, Tensor]] = {}
    dialects: dict[str, int] = {}
    ignored = []
    for key, tensor in tensors.items():
        found = _parse(key)
        if found is None:
            ignored.append(key)
            continue
        name, half, dialect = found
        if half in halves.setdefault(name, {}):
            raise ValueError(f"{source} has {half} of {name} twice, second as {key!r}. Export it anew.")
        halves[name][half] = tensor.float()
        dialects[dialect] = dialects.get(dialect, 0) + 1
    if not halves:
        raise ValueError(
            f"{source} has no LoRA of a WAN block. Its {len(ignored)} tensors look like {ignored[:_SHOWN]}."
        )
    lora = {name: _pair(name, parts, source) for name, parts in _in_order(halves)}
    dialect = max(dialects, key=dialects.__getitem__)
    return LoadedLora(lora, LoraMetadata.from_file(metadata or {}), dialect, ignored)


class _Found(NamedTuple):
    name: str
    half: str
    """`a`, `b` or `alpha`."""
    dialect: str


def _parse(key: str) -> _Found | None:
    """What a key of a LoRA file stands for; None when it is not a linear of a WAN block."""
    if key.endswith(".alpha"):
        module, half, adapter = key.removesuffix(".alpha"), "alpha", None
    else:
        match = _FACTOR.match(key)
        if match is None:
            return None
        module, half, adapter = match[1], _FACTORS[match[2]], match[3]
    flat = _FLAT.match(module)
    if flat is not None:
        path = _FLAT_PATHS.get(flat[2]) or _flat_diffusers(flat[2])
        dialect = "lycoris" if module.startswith("lycoris") else "kohya"
        return path and _Found(f"blocks.{flat[1]}.{path}", half, dialect)
    prefix = next((p for p in _PREFIXES if module.startswith(p)), "")
    bare = module.removeprefix(prefix)
    translated = native_linear(bare)
    name = translated or bare
    try:
        parse_linear(name)
    except ValueError:
        return None
    return _Found(name, half, _dialect(prefix, adapter, translated is not None))


def _flat_diffusers(path: str) -> str | None:
    """kohya names made of diffusers' names: `attn1_to_out_0`."""
    named = {diffusers_linear(f"blocks.0.{p}").removeprefix("blocks.0.").replace(".", "_"): p
             for role in Role for p in role.paths}  # fmt: skip
    return named.get(path)


def _dialect(prefix: str, adapter: str | None, diffusers: bool) -> str:
    if adapter in ("spatial_lora", "temporal_lora"):
        return "smrabooth release"
    if diffusers or prefix == "transformer.":
        return "diffusers"
    if prefix.startswith("base_model."):
        return "peft"
    return "comfyui" if prefix == "diffusion_model." else "diffsynth"


def _in_order(halves: Mapping[str, dict[str, Tensor]]) -> Iterable[tuple[str, dict[str, Tensor]]]:
    roles = list(Role)

    def place(item):
        block, path, role = parse_linear(item[0])
        return block, roles.index(role), role.paths.index(path)

    return sorted(halves.items(), key=place)


def _pair(name: str, parts: Mapping[str, Tensor], source: str) -> LoraPair:
    missing = [half for half in "ab" if half not in parts]
    if missing:
        raise ValueError(f"{source} has {name} without its factor {missing[0].upper()}. Export it anew.")
    a, b = parts["a"], parts["b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(
            f"{source}: the factors of {name} are {tuple(a.shape)} and {tuple(b.shape)}; (rank, in) and "
            "(out, "
            "rank) are needed. This is another kind of adapter."
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError(f"{source}: {name} holds NaN or infinite values. Train or download it again.")
    scale = parts["alpha"].item() / a.shape[0] if "alpha" in parts else 1.0
    return LoraPair(a, b * scale)


def _check_spec(lora: Lora, spec: WanSpec, source: str) -> None:
    for name, pair in lora.items():
        shape = (pair.b.shape[0], pair.a.shape[1])
        if parse_linear(name).block >= spec.blocks or shape != spec.linear_shape(name):
            raise ValueError(
                f"{source} does not fit {spec.name}: {name} is for a linear of {shape} (out, in); the "
                "model has "
                f"{spec.blocks} blocks and {spec.linear_shape(name)} there. Use a LoRA trained on this "
                "model."
            )


DIALECTS_OUT = ("comfyui", "diffusers", "kohya")


def convert_lora(source: str | Path, target: str | Path, dialect: str = "comfyui") -> None:
    """Write a LoRA under the names of one of DIALECTS_OUT; metadata is kept."""
    loaded = load_lora(source)
    metadata = loaded.metadata.to_file()
    if dialect == "comfyui":
        save_lora(target, loaded.lora, loaded.metadata)
    elif dialect == "diffusers":
        named = {f"transformer.{diffusers_linear(name)}": pair for name, pair in loaded.lora.items()}
        _write(target, named, metadata, torch.float32)
    elif dialect == "kohya":
        _write_kohya(target, loaded.lora, metadata)
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
