"""Parse the names in LoRA files, in every dialect that WAN LoRAs are published in."""

import re
from typing import NamedTuple

from ..wan.module_names import to_diffusers_linear, to_native_linear
from ..wan.spec import Role, parse_linear

EXPERTS = ("high", "low")
"""The two experts of Wan 2.2: one for high noise, one for low noise."""
_EXPERT_WORDS = {
    "transformer_2": "low",
    "transformer2": "low",
    "dit2": "low",
    "dit_2": "low",
    "low_noise_model": "low",
    "low_noise": "low",
    "high_noise_model": "high",
    "high_noise": "high",
}
"""Parts of a prefix that name an expert. `transformer` and `dit` alone name none: one expert has them too."""
LONGEST_KEY = 500
"""Largest number of letters of a key that is parsed, to bound the time that a hostile one takes."""
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that torch.compile, FSDP and checkpointing put before a wrapped module, anywhere in a name."""
_WORDS = (
    "base_model", "model", "diffusion_model", "pipe", "dit", "transformer", "unet", "wan", "net", "network",
    "module", "denoiser", "generator", "student", "lora", "lycoris", *_EXPERT_WORDS,
)  # fmt: skip
"""Parts that a prefix before `blocks` may consist of, in any number and order."""
_FACTORS = {
    **dict.fromkeys(("lora_A", "lora_a", "lora_down", "down"), "a"),
    **dict.fromkeys(("lora_B", "lora_b", "lora_up", "up"), "b"),
}
_FACTOR = re.compile(
    r"^(?P<module>.+?)(?:"
    r"\.(?P<factor>lora_[ABab]|lora_down|lora_up)(?:\.(?P<adapter>\w+))??(?:\.weight)?"
    r"|(?:\.lora|_lora|\.lora_linear_layer)\.(?P<side>down|up)\.weight)$"
)
_DOTTED = re.compile(r"^(?P<prefix>(?:[^.]+\.)*?)blocks\.(?P<block>0|[1-9][0-9]{0,2})\.(?P<path>.+)$")
"""Block numbers have no leading zeros: `blocks.007` would be a second name of block 7."""
_FLAT = re.compile(r"^(?P<prefix>(?:[A-Za-z0-9]+_+)*?)blocks_(?P<block>[0-9]{1,3})_(?P<path>\w+)$")
_FLAT_PREFIX = re.compile(rf"^(?:(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})_+)*$")
_FLAT_START = re.compile(_FLAT_PREFIX.pattern.removesuffix("$"))
_FLAT_LOW = re.compile(rf"_({'|'.join(word for word, name in _EXPERT_WORDS.items() if name == 'low')})_")
_FLAT_HIGH = re.compile(rf"_({'|'.join(word for word, name in _EXPERT_WORDS.items() if name == 'high')})_")
_OTHER_BLOCKS = re.compile(r"(?:^|[._])((?:vace|face|fuser|audio|motion|control|pose)\w*?_blocks)[._]\d")
"""Names of further blocks that variants of WAN have beside `blocks`; with dots, any `x_blocks` is one."""
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
    (
        re.compile(r"\.lora_\w+\.(scale_weight|weight_scale(_2)?|input_scale|scale_input|comfy_quant)$"),
        "a quantized LoRA with scales of its own",
    ),
)
"""Endings of keys that belong to other kinds of adapter, with the kind's name."""


class LoraKey(NamedTuple):
    """Meaning of one key of a LoRA file."""

    name: str
    """Native name of the linear."""
    factor: str
    """`a`, `b` or `alpha`, or `diff` for a change of the whole weight."""
    dialect: str
    """Name of the dialect that the key is written in."""
    module: str
    """Name of the linear in the file, without the prefix before `blocks`."""
    adapter: str | None = None
    """Name of the adapter, where the file gives it one, such as `default` or `spatial_lora`."""
    expert: str | None = None
    """Expert of Wan 2.2 that the prefix names: `high` or `low`."""


def parse_key(key: str) -> LoraKey | None:
    """Parse a key of a LoRA file; return None when it is not of the weight of a linear of a WAN block."""
    split = _split_key(key)
    if split is None:
        return None
    name, factor, adapter = split
    module = _parse_module(name)
    if module is None or module.prefix is None:
        return None
    return LoraKey(
        module.native, factor, _detect_dialect(module, adapter), module.name, adapter, module.expert
    )


class FurtherKey(NamedTuple):
    """Meaning of a key of a LoRA file that is not of a linear of a WAN block."""

    module: str
    """Name of the layer without known prefixes: `head.head`, or with a flat name `head_head`."""
    factor: str
    """`a`, `b` or `alpha`, `diff` for a change of the whole weight, `diff_b` for one of the bias."""
    adapter: str | None
    expert: str | None


def parse_further_key(key: str) -> FurtherKey | None:
    """Parse a key of any layer by its ending; return None when it has none of a LoRA."""
    if key.endswith(".diff_b") and len(key) <= LONGEST_KEY:
        split = key.removesuffix(".diff_b"), "diff_b", None
    else:
        split = _split_key(key)
    if split is None:
        return None
    name, factor, adapter = split
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    words = []
    while len(parts) > 1 and parts[0].lower() in (*_WORDS, "lora_unet"):
        words.append(parts.pop(0).lower())
    module = ".".join(parts)
    flat = _FLAT_START.match(module) if len(parts) == 1 else None
    expert = next((_EXPERT_WORDS[word] for word in words if word in _EXPERT_WORDS), None)
    if flat:
        module = module[flat.end() :]
        expert = (
            "low" if _FLAT_LOW.search(f"_{flat[0]}") else "high" if _FLAT_HIGH.search(f"_{flat[0]}") else None
        )
    return FurtherKey(to_native_linear(module) or module, factor, adapter, expert)


def find_unknown_prefix(key: str) -> str | None:
    """Return what stands before the name of a block's linear, when it holds words that are not known."""
    split = _split_key(key)
    module = split and _parse_module(split[0])
    return split[0].removesuffix(module.name) if module and module.prefix is None else None


def _split_key(key: str) -> tuple[str, str, str | None] | None:
    """Return the name of the module, the factor and the adapter of a key; None for other keys."""
    if len(key) > LONGEST_KEY:
        return None
    for factor in ("alpha", "diff"):
        if key.endswith(f".{factor}"):
            return key.removesuffix(f".{factor}"), factor, None
    match = _FACTOR.match(key)
    # The bias of a factor: `lora_B.bias`, of PEFT's lora_bias and diffusers' form of diff_b.
    if match is None or match["adapter"] == "bias":
        return None
    return match["module"], _FACTORS[match["factor"] or match["side"]], match["adapter"]


def detect_other_algorithm(key: str) -> tuple[str, bool] | None:
    """Return the kind of adapter, if not LoRA, of a key, and whether the key is of a block's linear."""
    for pattern, kind in _ALGORITHMS:
        if match := pattern.search(key):
            module = _parse_module(key[: match.start()])
            return kind, module is not None and module.prefix is not None
    return None


class _Module(NamedTuple):
    """Name of a linear in a LoRA file."""

    native: str
    """Native name of the linear."""
    name: str
    """Name in the file without the prefix; with a flat name, all of it."""
    prefix: str | None
    """Prefix before `blocks`, of known words; None when it holds others."""
    is_diffusers: bool
    """Whether the file uses diffusers' name for it."""
    expert: str | None
    """Expert of Wan 2.2 that the prefix names."""


def _parse_module(module: str) -> _Module | None:
    """Parse the name of a linear of a WAN block under any prefix; return None for all other names."""
    parts = [part for part in module.split(".") if part not in _WRAPPERS]
    match = _DOTTED.match(".".join(parts))
    if match is None:
        return _parse_flat_module(module)
    bare = f"blocks.{match['block']}.{match['path']}"
    translated = to_native_linear(bare)
    try:
        parse_linear(translated or bare)
    except ValueError:
        return None
    words = match["prefix"].lower().removesuffix(".").split(".") if match["prefix"] else []
    # kohya's prefix with dots, as some converters write it
    known = all(word in _WORDS or word == "lora_unet" for word in words)
    expert = next((_EXPERT_WORDS[word] for word in words if word in _EXPERT_WORDS), None)
    return _Module(
        translated or bare, bare, match["prefix"] if known else None, translated is not None, expert
    )


def _parse_flat_module(module: str) -> _Module | None:
    match = _FLAT.match(module)
    path = match and _FLAT_PATHS.get(match["path"])
    if not path or find_other_blocks(module):
        return None
    prefix = match["prefix"]
    known = _FLAT_PREFIX.match(prefix) is not None
    expert = "low" if _FLAT_LOW.search(f"_{prefix}") else "high" if _FLAT_HIGH.search(f"_{prefix}") else None
    name = module if known else module.removeprefix(prefix)
    return _Module(f"blocks.{int(match['block'])}.{path}", name, "" if known else None, False, expert)


def find_other_blocks(key: str) -> str | None:
    """Return the name of the blocks that a key is of, when they are not WAN's own: `vace_blocks`."""
    match = _OTHER_BLOCKS.search(key) or re.search(r"(?:^|\.)(\w+_blocks)\.\d", key)
    return match and match[1]


def _detect_dialect(module: _Module, adapter: str | None) -> str:
    if "." not in module.name:
        return "lycoris" if module.name.startswith("lycoris") else "kohya"
    if adapter in ("spatial_lora", "temporal_lora"):
        return "smrabooth release"
    words = (module.prefix or "").split(".")
    if words[0] == "base_model":
        return "peft"
    if module.is_diffusers or words[0].startswith("transformer"):
        return "diffusers"
    if "diffusion_model" in words:
        return "comfyui"
    return "diffsynth" if words[0] in ("", "pipe", "dit") else "other"
