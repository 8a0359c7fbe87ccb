"""The scale alpha / rank of a LoRA, read from the file's alpha keys or from a PEFT configuration.

kohya writes an `alpha` for each pair. PEFT and diffusers write one configuration: PEFT into
adapter_config.json next to the weights, diffusers into the file's metadata. Without either the scale 1 is
assumed, and `describe_scale` says so.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..storage.weight_check import READABLE_FLOATS, WHOLE_NUMBERS, join_names
from ..storage.weight_file import SAFETENSORS_ENDINGS

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Names of PEFT's two files (peft.utils.CONFIG_NAME and SAFETENSORS_WEIGHTS_NAME)."""
WEIGHTS_NAMES = (
    ADAPTER_WEIGHTS,
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
"""Names of the weights in a LoRA's folder, of PEFT and of diffusers, in the order in which they are tried."""
_ENDINGS = (*SAFETENSORS_ENDINGS, ".bin", ".pt", ".pth", ".ckpt")
ADAPTER_METADATA = "lora_adapter_metadata"
"""Metadata key under which diffusers stores PEFT's configuration."""
_DIFFUSERS_PREFIXES = {"low": "transformer_2.", "high": "transformer.", None: "transformer."}
"""Prefix of the configuration's keys in that metadata, by the expert of Wan 2.2 that the names are of."""
_MOST_TEXT = 1 << 22
"""Largest number of characters of a configuration."""
_MOST_PATTERNS = 1000
"""Largest number of entries in rank_pattern or alpha_pattern; the 14B has 400 linears."""
_MOST_REPEATS = 4
"""Largest number of `*`, `+`, `?` and `{` in a pattern: matching more could take hours."""


class AdapterConfig(NamedTuple):
    """PEFT's configuration of a LoRA."""

    source: str
    """Name of the place where it is stored, for messages."""
    values: "LoraConfig"
    has_alpha: bool = True
    """Whether lora_alpha is given; without it PEFT takes 8."""

    def get_scale(self, module: str, rank: int, source: str) -> float:
        """Return the scale of a module whose factors have this rank, by PEFT's rules.

        `rank_pattern` and `alpha_pattern` are matched by PEFT itself: a key is a regular expression for the
        module's name or for its end. The scale is alpha / rank, with rsLoRA alpha / sqrt(rank). Raises
        ValueError when the configuration gives another rank.
        """
        from peft.utils.other import get_pattern_key

        ranks, alphas = self.values.rank_pattern, self.values.alpha_pattern
        expected = ranks.get(get_pattern_key(ranks, module), self.values.r)
        if expected != rank:
            raise ValueError(
                f"{source}: the factors of {module} have rank {rank}, {self.source} says {expected}. They do "
                "not belong together: take both from the same place, or move the configuration away."
            )
        alpha = alphas.get(get_pattern_key(alphas, module), self.values.lora_alpha)
        return alpha / (math.sqrt(rank) if self.values.use_rslora else rank)


def import_peft() -> ModuleType:
    """Import the library peft; raise ImportError with the way out when it is missing."""
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "A LoRA with a PEFT configuration needs the library peft, which cannot be imported "
            f"({error}). Install it with: pip install peft"
        ) from error
    return peft


def find_weights(folder: Path) -> Path:
    """Find the weights in a LoRA's folder: under a name of PEFT or diffusers, or as its only weight file.

    PEFT writes an adapter that is not called `default` into a subfolder of its name; the only one is taken.
    Raises ValueError with what the folder holds when there is none, or more than one to choose from.
    """
    named = _list_named_weights(folder)
    others = _list_weight_files(folder)
    if named or len(others) == 1:
        return (named or others)[0]
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and _list_named_weights(path)]
    if not others and len(subfolders) == 1:
        return _list_named_weights(subfolders[0])[0]
    names = [path.name for path in (*others, *subfolders)]
    raise ValueError(
        f"{folder} holds {len(names)} LoRAs to choose from ({join_names(names)}); one is needed, or one that "
        f"is called {', '.join(WEIGHTS_NAMES[:-1])} or {WEIGHTS_NAMES[-1]}. Give the file that you mean "
        "instead of the folder."
    )


def _list_named_weights(folder: Path) -> list[Path]:
    return [folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()]


def _list_weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in _ENDINGS)


def read_adapter_config(
    path: Path, metadata: Mapping[str, str], is_peft: bool = False, expert: str | None = None
) -> AdapterConfig | None:
    """Read the PEFT configuration that belongs to a LoRA file; None when there is none.

    The configuration is in the metadata, as diffusers writes it, or in adapter_config.json beside the file.
    The latter is read for a file that has PEFT's own name, and with `is_peft` for a file of any name: in a
    folder of many LoRAs it belongs to those with PEFT's names of modules. `expert` is the expert of Wan 2.2
    that the file's names are of. Raises ValueError when the configuration cannot be read, lacks the rank or
    describes another adapter than a plain LoRA, and ImportError when there is one and peft is not installed.
    """
    if ADAPTER_METADATA in metadata:
        values = _parse_json(metadata[ADAPTER_METADATA], path)
        # One text holds a configuration for each part of a pipeline; text encoders have another prefix.
        prefix = _DIFFUSERS_PREFIXES[expert]
        if not any(key.startswith(prefix) for key in values):
            prefix = _DIFFUSERS_PREFIXES[None]
        stripped = {key.removeprefix(prefix): value for key, value in values.items()}
        own = {key: value for key, value in stripped.items() if "." not in key}
        return _build_config(own, f"its metadata {ADAPTER_METADATA}", path) if own else None
    beside = path.with_name(ADAPTER_CONFIG)
    if not (is_peft or path.name in WEIGHTS_NAMES[:2]) or not beside.is_file():
        return None
    try:
        text = beside.read_text(encoding="utf-8") if beside.stat().st_size <= 4 * _MOST_TEXT else ""
    except (OSError, ValueError) as error:
        raise ValueError(f"{beside} cannot be read ({error}). Export the adapter again.") from error
    return _build_config(_parse_json(text, beside), ADAPTER_CONFIG, path)


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text) if len(text) <= _MOST_TEXT else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f"{path}: its adapter configuration is not a JSON object of at most {_MOST_TEXT} characters. "
            "Export the adapter again."
        )
    return values


def _build_config(values: Mapping[str, Any], source: str, path: Path) -> AdapterConfig:
    # The kind first: only LoraConfig is ever built from a file, none of PEFT's 30 other classes.
    kind = str(values.get("peft_type", "LORA"))
    if kind != "LORA" or values.get("use_dora"):
        kind = "DoRA" if kind == "LORA" else kind[:40]
        raise ValueError(f"{path.name} is an adapter of kind {kind}, {source} says; a plain LoRA is needed.")
    if "r" not in values:
        raise ValueError(
            f"{path}: {source} has no r, the rank of the LoRA, so the scale is not known. Export the adapter "
            "again, or take its configuration from where the file is from."
        )
    peft = import_peft()
    try:
        # LoraConfig.from_pretrained does the same after it has read adapter_config.json, which here is read
        # already, with a limit on its size; diffusers' metadata has no file of its own.
        config = peft.LoraConfig.from_peft_type(**{"peft_type": "LORA", **values})
        config.r, config.lora_alpha = int(config.r), float(config.lora_alpha)
        config.rank_pattern = {str(k): int(v) for k, v in (config.rank_pattern or {}).items()}
        config.alpha_pattern = {str(k): float(v) for k, v in (config.alpha_pattern or {}).items()}
    except Exception as error:  # LoraConfig raises many kinds for values of wrong types
        raise ValueError(
            f"{path}: {source} has no usable r and lora_alpha ({str(error)[:200]}). Export the adapter again."
        ) from error
    _check_patterns(config, source, path)
    return AdapterConfig(source, config, "lora_alpha" in values)


def _check_patterns(config: "LoraConfig", source: str, path: Path) -> None:
    if not all(map(math.isfinite, (config.lora_alpha, *config.alpha_pattern.values()))):
        raise ValueError(f"{path}: {source} has an alpha that is no number. Export the adapter again.")
    for patterns in (config.rank_pattern, config.alpha_pattern):
        unusable = [pattern for pattern in patterns if not _is_usable_pattern(pattern)]
        if len(patterns) > _MOST_PATTERNS or unusable:
            shown = f", such as {unusable[0][:120]!r}" if unusable else ""
            raise ValueError(
                f"{path}: {source} has {len(patterns)} patterns for modules{shown}. At most {_MOST_PATTERNS} "
                f"regular expressions, each with at most {_MOST_REPEATS} repetitions and none of a group, "
                "are read. Write the modules' names instead."
            )


def _is_usable_pattern(pattern: str) -> bool:
    # A repeated group such as (a+)+ can take time that doubles with each letter of the name.
    if len(re.findall(r"[*+?{]", pattern)) > _MOST_REPEATS or re.search(r"\)[*+?{]", pattern):
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def resolve_scale(name: str, rank: int, alpha: Tensor | None, configured: float | None, source: str) -> float:
    """Return the scale of one pair from its own alpha, else from the configuration, else 1.

    Raises ValueError when alpha is not one finite number, or when both are given and differ.
    """
    if alpha is None:
        return 1.0 if configured is None else configured
    number = _read_number(alpha)
    if not math.isfinite(number):
        raise ValueError(
            f"{source}: the alpha of {name} is {_describe_alpha(alpha)}; one number is needed. Export the "
            "LoRA again."
        )
    own = number / rank
    if configured is not None and not math.isclose(own, configured, rel_tol=1e-4, abs_tol=1e-9):
        raise ValueError(
            f"{source}: {name} has alpha {number:g} at rank {rank}, scale {own:g}; the adapter's "
            f"configuration says scale {configured:g}. Export the LoRA again, or delete one of the two."
        )
    return own


def describe_scale(
    factors: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, str],
    config: AdapterConfig | None,
    is_own: bool,
    is_peft: bool,
) -> str:
    """Return a sentence on the scale that a LoRA is read with, where the file does not give it for each pair.

    `factors` holds the tensors of each linear by its native name. `is_own` says that this project wrote the
    file, which has the scale baked in, and `is_peft` that its modules have PEFT's names. The sentence is
    empty when nothing was assumed.
    """
    without = [name for name, parts in factors.items() if "alpha" not in parts and "diff" not in parts]
    if not without or is_own:
        return ""
    if config is not None:
        alpha = (
            "" if config.has_alpha else f"; it has no lora_alpha, so PEFT's {config.values.lora_alpha:g} is"
        )
        return f"The scale is that of {config.source}{alpha and alpha + ' assumed'}."
    if len(without) < len(factors):
        return (
            f"{len(without)} of {len(factors)} linears have no alpha, such as {without[0]}; scale 1 is "
            "assumed for them."
        )
    alpha, rank = (metadata.get(f"ss_network_{key}", "") for key in ("alpha", "dim"))
    told = (
        f" The metadata's ss_network_alpha {alpha[:20]} at rank {rank[:20]} is not applied; ComfyUI does not "
        "apply it either."
        if alpha and alpha != rank
        else ""
    )
    peft = f" PEFT writes the scale into {ADAPTER_CONFIG}: put that file beside this one." if is_peft else ""
    return f"No alpha and no PEFT configuration gives the scale; scale 1 is assumed.{told}{peft}"


def _read_number(alpha: Tensor) -> float:
    """Return the value of a one-element tensor; NaN when it is not one readable number."""
    readable = alpha.numel() == 1 and alpha.dtype in READABLE_FLOATS | WHOLE_NUMBERS
    return float(alpha.item()) if readable else math.nan


def _describe_alpha(alpha: Tensor) -> str:
    return f"{_read_number(alpha):g}" if alpha.numel() == 1 else f"of shape {tuple(alpha.shape)}"
