"""Write LoRA files under the names of ComfyUI, diffusers, kohya or PEFT."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..storage.atomic_write import atomic_write
from ..wan.module_names import diffusers_linear
from .adapter import Lora, LoraPair
from .metadata import LoraMetadata
from .reader import LoadedLora, load_lora
from .scale import ADAPTER_CONFIG, ADAPTER_WEIGHTS, config_text


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
    with atomic_write(path) as draft:
        save_file(tensors, draft, metadata)


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
    with atomic_write(target) as draft:
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
    with atomic_write(folder / ADAPTER_CONFIG) as draft:
        draft.write_text(config_text(ranks, loaded.metadata.base_model), encoding="utf-8")
