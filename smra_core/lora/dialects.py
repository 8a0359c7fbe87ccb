"""Parse the names in LoRA files, in every dialect that WAN LoRAs are published in."""

import re
from typing import NamedTuple

from ..wan.module_names import to_diffusers_linear, to_native_linear
from ..wan.spec import Role, parse_linear

_PREFIXES = (
    "base_model.model.diffusion_model.",
    "base_model.model.",
    "diffusion_model.",
    "pipe.dit.",
    "transformer.",
    "dit.",
)
_FACTORS = {"lora_A": "a", "lora_down": "a", "down": "a", "lora_B": "b", "lora_up": "b", "up": "b"}
_FACTOR = re.compile(
    r"^(?P<module>.+?)(?:"
    r"\.(?P<factor>lora_A|lora_B|lora_down|lora_up)(?:\.(?P<adapter>\w+))??(?:\.weight)?"
    r"|(?:\.lora|_lora|\.lora_linear_layer)\.(?P<side>down|up)\.weight)$"
)
_FLAT = re.compile(r"^(?:lora_unet|lycoris)_+blocks_([0-9]{1,3})_(.+)$")
_NUMBERED = re.compile(r"^blocks\.(?:0|[1-9][0-9]{0,2})\.")
"""Block numbers without leading zeros: `blocks.007` would be a second name of block 7."""
_PATHS = [path for role in Role for path in role.paths]
_FLAT_PATHS = {path.replace(".", "_"): path for path in _PATHS} | {
    to_diffusers_linear(f"blocks.0.{path}").removeprefix("blocks.0.").replace(".", "_"): path
    for path in _PATHS
}
"""Native path of a linear in a block by its path with underscores, native or of diffusers (`attn1_to_out_0`).
"""
_ALGORITHMS = (
    (re.compile(r"\.lokr_w[12](_[ab])?$|\.lokr_t2$"), "LoKr"),
    (re.compile(r"\.hada_(w[12]_[ab]|t[12])$"), "LoHa"),
    (re.compile(r"\.(oft_blocks|oft_diag|oft_R.*)$"), "OFT or BOFT"),
    (re.compile(r"\.[ab][12]\.weight$"), "GLoRA"),
    (re.compile(r"\.(dora_scale|lora_magnitude_vector.*)$"), "DoRA"),
    (re.compile(r"\.lora_mid\.weight$"), "LoCon with a middle factor"),
    (re.compile(r"\.on_input$|\.ia3_l.*$"), "IA3"),
    (re.compile(r"\.vera_lambda_[bd].*$"), "VeRA"),
    (re.compile(r"\.lora_E(\..+)?$"), "AdaLoRA"),
    (re.compile(r"\.(reshape_weight|set_weight)$"), "a LoRA that replaces weights"),
)
"""Endings of keys that belong to other kinds of adapter, with the kind's name."""


class LoraKey(NamedTuple):
    """Meaning of one key of a LoRA file."""

    name: str
    """Native name of the linear."""
    factor: str
    """`a`, `b` or `alpha`."""
    dialect: str
    """Name of the dialect that the key is written in."""
    module: str
    """Name of the linear in the file, without the prefix before `blocks`."""


def parse_key(key: str) -> LoraKey | None:
    """Parse a key of a LoRA file; return None when it does not belong to a linear of a WAN block."""
    if key.endswith(".alpha"):
        name, factor, adapter = key.removesuffix(".alpha"), "alpha", None
    else:
        match = _FACTOR.match(key)
        if match is None:
            return None
        name, adapter = match["module"], match["adapter"]
        factor = _FACTORS[match["factor"] or match["side"]]
    module = _parse_module(name)
    return module and LoraKey(module.native, factor, _detect_dialect(module, adapter), module.name)


def detect_other_algorithm(key: str) -> tuple[str, bool] | None:
    """Return the kind of adapter, if not LoRA, of a key, and whether the key is of a block's linear."""
    for pattern, kind in _ALGORITHMS:
        if match := pattern.search(key):
            return kind, _parse_module(key[: match.start()]) is not None
    return None


class _Module(NamedTuple):
    """Name of a linear in a LoRA file."""

    native: str
    """Native name of the linear."""
    name: str
    """Name in the file without the prefix."""
    prefix: str
    is_diffusers: bool
    """Whether the file uses diffusers' name for it."""


def _parse_module(module: str) -> _Module | None:
    flat = _FLAT.match(module)
    if flat is not None:
        path = _FLAT_PATHS.get(flat[2])
        return _Module(f"blocks.{int(flat[1])}.{path}", module, "", False) if path else None
    prefix = next((p for p in _PREFIXES if module.startswith(p)), "")
    bare = module.removeprefix(prefix)
    if not _NUMBERED.match(bare):
        return None
    translated = to_native_linear(bare)
    name = translated or bare
    try:
        parse_linear(name)
    except ValueError:
        return None
    return _Module(name, bare, prefix, translated is not None)


def _detect_dialect(module: _Module, adapter: str | None) -> str:
    if _FLAT.match(module.name):
        return "lycoris" if module.name.startswith("lycoris") else "kohya"
    if adapter in ("spatial_lora", "temporal_lora"):
        return "smrabooth release"
    if module.prefix.startswith("base_model."):
        return "peft"
    if module.is_diffusers or module.prefix == "transformer.":
        return "diffusers"
    return "comfyui" if module.prefix == "diffusion_model." else "diffsynth"
