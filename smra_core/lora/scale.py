"""How strong a LoRA's factors are meant: alpha / rank, wherever a program writes the two numbers.

kohya puts an `alpha` beside each pair; PEFT and diffusers write one configuration, PEFT in
adapter_config.json beside the weights, diffusers in the file's metadata. Without either the scale is 1.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..storage.weight_check import READABLE_FLOATS, WHOLE_NUMBERS

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT calls its two files."""
ADAPTER_METADATA = "lora_adapter_metadata"
"""Metadata entry in which diffusers keeps PEFT's configuration."""
_DIFFUSERS_PART = "transformer."
_MOST_TEXT = 1 << 22


@dataclass(frozen=True)
class AdapterConfig:
    """The part of PEFT's configuration that changes what factors mean."""

    where: str
    rank: int
    alpha: float
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of modules that differ, by the module's name or its end."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    root_scaled: bool = False
    """rsLoRA: alpha / sqrt(rank)."""

    def scale(self, module: str, rank: int, source: str) -> float:
        """Scale of a module whose factors have this rank; ValueError when the configuration says another."""
        expected = _of_pattern(self.rank_pattern, module, self.rank)
        if expected != rank:
            raise ValueError(
                f"{source}: the factors of {module} have rank {rank}, {self.where} says {expected}. They do "
                "not belong together; take both files from the same place."
            )
        alpha = _of_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.root_scaled else rank)


def _of_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((v for k, v in pattern.items() if module == k or module.endswith("." + k)), default)


def adapter_config(path: Path, metadata: Mapping[str, str]) -> AdapterConfig | None:
    """The configuration that belongs to a LoRA file; None when there is none.

    ValueError when it cannot be read, or asks for what a plain LoRA is not.
    """
    if ADAPTER_METADATA in metadata:
        where, values = f"its metadata {ADAPTER_METADATA}", _json(metadata[ADAPTER_METADATA], path)
        prefixed = {k.removeprefix(_DIFFUSERS_PART): v for k, v in values.items()}
        # Written for each part of a pipeline: text encoders have their own.
        return _config(prefixed, where, path) if "r" in prefixed else None
    beside = path.with_name(ADAPTER_CONFIG)
    if path.name != ADAPTER_WEIGHTS or not beside.is_file():
        return None
    try:
        text = beside.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{beside} cannot be read ({error}). Export the adapter anew.") from error
    return _config(_json(text, beside), ADAPTER_CONFIG, path)


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text) if len(text) <= _MOST_TEXT else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: its adapter configuration is not a JSON object. Export the adapter anew.")
    return values


def _config(values: Mapping[str, Any], where: str, path: Path) -> AdapterConfig:
    kind = str(values.get("peft_type", "LORA"))
    if kind != "LORA" or values.get("use_dora"):
        kind = "DoRA" if kind == "LORA" else kind[:40]
        raise ValueError(f"{path.name} is an adapter of kind {kind}, {where} says; a plain LoRA is needed.")
    try:
        ranks = {str(k): int(v) for k, v in (values.get("rank_pattern") or {}).items()}
        alphas = {str(k): float(v) for k, v in (values.get("alpha_pattern") or {}).items()}
        config = AdapterConfig(
            where, int(values["r"]), float(values.get("lora_alpha", values["r"])), ranks, alphas,
            bool(values.get("use_rslora")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: {where} has no usable r and lora_alpha ({error}).") from error
    if not all(map(math.isfinite, (config.alpha, *alphas.values()))):
        raise ValueError(f"{path}: {where} has an alpha that is no number. Export the adapter anew.")
    return config


def scale_of(name: str, rank: int, alpha: Tensor | None, configured: float | None, source: str) -> float:
    """Scale of one pair from its own alpha, from the configuration, or 1; ValueError when they disagree."""
    if alpha is None:
        return 1.0 if configured is None else configured
    number = _number(alpha)
    if not math.isfinite(number):
        raise ValueError(
            f"{source}: the alpha of {name} is {_shown(alpha)}; one number is needed. Export it anew."
        )
    own = number / rank
    if configured is not None and not math.isclose(own, configured, rel_tol=1e-4, abs_tol=1e-9):
        raise ValueError(
            f"{source}: {name} has alpha {number:g} at rank {rank}, scale {own:g}; the adapter's "
            f"configuration says scale {configured:g}. Export it anew, or delete one of the two."
        )
    return own


def _number(alpha: Tensor) -> float:
    """NaN for what is not one readable number."""
    readable = alpha.numel() == 1 and alpha.dtype in READABLE_FLOATS | WHOLE_NUMBERS
    return float(alpha.item()) if readable else math.nan


def _shown(alpha: Tensor) -> str:
    number = _number(alpha)
    return f"{number:g}" if alpha.numel() == 1 else f"of shape {tuple(alpha.shape)}"


def config_text(ranks: Mapping[str, int], base_model: str) -> str:
    """adapter_config.json for modules of these ranks whose scale is 1."""
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {name: rank for name, rank in ranks.items() if rank != common}
    content = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model or None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
    }
    return json.dumps(content, indent=1)
