"""What a name in a LoRA file stands for, in every dialect that WAN LoRAs are found in."""

import re
from typing import NamedTuple

from ..wan.module_names import diffusers_linear, native_linear
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
    r"\.(?P<half>lora_A|lora_B|lora_down|lora_up)(?:\.(?P<adapter>\w+))??(?:\.weight)?"
    r"|(?:\.lora|_lora|\.lora_linear_layer)\.(?P<side>down|up)\.weight)$"
)
_FLAT = re.compile(r"^(?:lora_unet|lycoris)_+blocks_([0-9]{1,3})_(.+)$")
_NUMBERED = re.compile(r"^blocks\.(?:0|[1-9][0-9]{0,2})\.")
"""Numbers as every program writes them: `blocks.007` would be a second name of block 7."""
_FLAT_PATHS = {path.replace(".", "_"): path for role in Role for path in role.paths}
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


class Found(NamedTuple):
    name: str
    """Native name of the linear."""
    half: str
    """`a`, `b` or `alpha`."""
    dialect: str
    module: str
    """The linear as the file calls it, without what stands before the block."""


def parse_key(key: str) -> Found | None:
    """What a key of a LoRA file stands for; None when it is not a linear of a WAN block."""
    if key.endswith(".alpha"):
        module, half, adapter = key.removesuffix(".alpha"), "alpha", None
    else:
        match = _FACTOR.match(key)
        if match is None:
            return None
        module, half, adapter = match["module"], _FACTORS[match["half"] or match["side"]], match["adapter"]
    linear = _parse_module(module)
    if linear is None:
        return None
    name, bare, prefix, translated = linear
    return Found(name, half, _detect_dialect(module, prefix, adapter, translated), bare)


def detect_other_algorithm(key: str) -> tuple[str, bool] | None:
    """The kind of adapter, other than LoRA, that a key belongs to, and whether it is on a block's linear."""
    for pattern, kind in _ALGORITHMS:
        if match := pattern.search(key):
            return kind, _parse_module(key[: match.start()]) is not None
    return None


def _parse_module(module: str) -> tuple[str, str, str, bool] | None:
    """Native name, name without prefix, the prefix, and whether it was in diffusers' names."""
    flat = _FLAT.match(module)
    if flat is not None:
        path = _FLAT_PATHS.get(flat[2]) or _flat_diffusers(flat[2])
        return (f"blocks.{int(flat[1])}.{path}", module, "", False) if path else None
    prefix = next((p for p in _PREFIXES if module.startswith(p)), "")
    bare = module.removeprefix(prefix)
    if not _NUMBERED.match(bare):
        return None
    translated = native_linear(bare)
    name = translated or bare
    try:
        parse_linear(name)
    except ValueError:
        return None
    return name, bare, prefix, translated is not None


def _flat_diffusers(path: str) -> str | None:
    """kohya names made of diffusers' names: `attn1_to_out_0`."""
    named = {diffusers_linear(f"blocks.0.{p}").removeprefix("blocks.0.").replace(".", "_"): p
             for role in Role for p in role.paths}  # fmt: skip
    return named.get(path)


def _detect_dialect(module: str, prefix: str, adapter: str | None, diffusers: bool) -> str:
    if _FLAT.match(module):
        return "lycoris" if module.startswith("lycoris") else "kohya"
    if adapter in ("spatial_lora", "temporal_lora"):
        return "smrabooth release"
    if prefix.startswith("base_model."):
        return "peft"
    if diffusers or prefix == "transformer.":
        return "diffusers"
    return "comfyui" if prefix == "diffusion_model." else "diffsynth"
