"""Write LoRA files under the names of ComfyUI, diffusers, kohya or PEFT."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..storage.atomic_write import write_atomically
from ..storage.weight_file import SAFETENSORS_ENDINGS, write_weight_file
from ..wan.module_names import to_diffusers_linear
from .adapter import Lora, LoraPair
from .metadata import LoraMetadata
from .reader import LoadedLora, load_lora
from .scale import ADAPTER_CONFIG, ADAPTER_WEIGHTS, import_peft


def save_lora(path: str | Path, lora: Lora, metadata: LoraMetadata, dtype=torch.float32) -> None:
    """Write `diffusion_model.blocks.N.….lora_A.weight` and `lora_B`, with the scale baked into B and no
    alpha.

    ComfyUI's own LoRA loader reads every module of the file.
    """
    _write(path, {f"diffusion_model.{name}": pair for name, pair in lora.items()}, metadata.to_file(), dtype)


def _write(path: str | Path, named: Mapping[str, LoraPair], metadata: dict[str, str], dtype) -> None:
    tensors = {}
    for name, pair in named.items():
        tensors[f"{name}.lora_A.weight"] = pair.a.detach().to("cpu", dtype).contiguous()
        tensors[f"{name}.lora_B.weight"] = (pair.scale * pair.b.detach()).to("cpu", dtype).contiguous()
    write_weight_file(path, tensors, metadata)


DIALECTS_OUT = ("comfyui", "diffusers", "kohya", "peft")
"""Dialects that can be written."""


def convert_lora(
    source: str | Path,
    target: str | Path,
    dialect: str = "comfyui",
    expert: str | None = None,
    adapter: str | None = None,
) -> LoadedLora:
    """Write a LoRA under the names of one of DIALECTS_OUT, with its metadata; return what was read.

    `peft` writes a folder that PeftModel.from_pretrained reads, with diffusers' module names. `expert` and
    `adapter` choose as in `load_lora`. Raises ValueError for an unknown dialect, a target of another ending
    than .safetensors or .sft, or an unreadable source, and ImportError when `peft` is asked for and not
    installed.
    """
    target = Path(target)
    if dialect not in DIALECTS_OUT:
        raise ValueError(f"Dialect {dialect!r} is not known; give one of {DIALECTS_OUT}.")
    _check_target(target, dialect)
    loaded = load_lora(source, None, expert, adapter)
    metadata = loaded.metadata.to_file()
    if dialect == "comfyui":
        save_lora(target, loaded.lora, loaded.metadata)
    elif dialect == "diffusers":
        named = {f"transformer.{to_diffusers_linear(name)}": pair for name, pair in loaded.lora.items()}
        _write(target, named, metadata, torch.float32)
    elif dialect == "kohya":
        _write_kohya(target, loaded.lora, metadata)
    else:
        _write_peft(target, loaded)
    return loaded


def _check_target(target: Path, dialect: str) -> None:
    is_file_name = target.suffix.lower() in SAFETENSORS_ENDINGS
    if dialect == "peft" and is_file_name:
        raise ValueError(
            f"PEFT keeps an adapter in a folder; give {target.with_suffix('')} instead of {target}."
        )
    if dialect != "peft" and target.is_dir():
        raise ValueError(f"{target} is a folder; give a file, such as {target / 'lora.safetensors'}.")
    if dialect != "peft" and not is_file_name:
        raise ValueError(
            f"{target} is no name of a safetensors file, under which ComfyUI would find it. Give "
            f"{target}.safetensors instead."
        )


def _write_kohya(target: str | Path, lora: Lora, metadata: dict[str, str]) -> None:
    tensors = {}
    for name, pair in lora.items():
        module = "lora_unet_" + name.replace(".", "_")
        tensors[f"{module}.lora_down.weight"] = pair.a.detach().clone()
        tensors[f"{module}.lora_up.weight"] = pair.b.detach().clone()
        tensors[f"{module}.alpha"] = torch.tensor(float(pair.rank))
    write_weight_file(target, tensors, metadata)


def _write_peft(folder: Path, loaded: LoadedLora) -> None:
    peft = import_peft()  # before anything is written
    named = {to_diffusers_linear(name): pair for name, pair in loaded.lora.items()}
    prefixed = {f"base_model.model.{name}": pair for name, pair in named.items()}
    _write(folder / ADAPTER_WEIGHTS, prefixed, loaded.metadata.to_file(), torch.float32)
    ranks = {name: pair.rank for name, pair in named.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    patterns = {name: other for name, other in ranks.items() if other != rank}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,  # alpha = rank everywhere, as the scales are baked into B
        rank_pattern=patterns,
        alpha_pattern=dict(patterns),
        base_model_name_or_path=loaded.metadata.base_model or None,
        inference_mode=True,
    )
    config.target_modules = list(ranks)  # a list keeps its order in the file; PEFT would make it a set
    with TemporaryDirectory() as temporary, write_atomically(folder / ADAPTER_CONFIG) as draft:
        config.save_pretrained(temporary)
        draft.write_bytes(Path(temporary, ADAPTER_CONFIG).read_bytes())
