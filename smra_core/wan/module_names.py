"""Translation between WAN's own (native) module names and those of diffusers.

Native names are used in WAN's own checkpoints, in ComfyUI and in nearly every LoRA; diffusers renames the
modules when it reads such a file (`from_single_file`). Linears are translated both ways, whole checkpoints
from diffusers' names to native ones.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from torch import Tensor

from .spec import Role, parse_linear

_ATTENTIONS = {"self_attn": "attn1", "cross_attn": "attn2"}
_LINEARS = {
    **{
        f"{native}.{role.value}": f"{ours}.{'to_out.0' if role is Role.O else 'to_' + role.value}"
        for native, ours in _ATTENTIONS.items()
        for role in (Role.Q, Role.K, Role.V, Role.O)
    },
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
"""Path of a linear inside a block in diffusers, by its native path."""
_NATIVE_LINEARS = {theirs: native for native, theirs in _LINEARS.items()}

_DIT = (
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"^(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
    (r"^(blocks\.\d+)\.attn1\.", r"\1.self_attn."),
    (r"^(blocks\.\d+)\.attn2\.", r"\1.cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    # The norm before the cross-attention is the second in diffusers and the third in WAN.
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
)
_RESIDUAL = (
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
_VAE = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"coder\.conv_in\.", "coder.conv1."),
    (r"coder\.norm_out\.", "coder.head.0."),
    (r"coder\.conv_out\.", "coder.head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
)
_RESNETS_IN_DOWN_BLOCK, _RESNETS_IN_UP_BLOCK = 2, 3
"""Residual blocks in each block; WAN numbers them and the up- or downsampler that follows consecutively."""
_STAGES = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.downsamples.\1.downsamples."),
    (
        r"^encoder\.down_blocks\.(\d+)\.downsampler\.",
        rf"encoder.downsamples.\1.downsamples.{_RESNETS_IN_DOWN_BLOCK}.",
    ),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.upsamples.\1.upsamples."),
    (r"^decoder\.up_blocks\.(\d+)\.upsampler\.", rf"decoder.upsamples.\1.upsamples.{_RESNETS_IN_UP_BLOCK}."),
)
"""Stages of Wan 2.2's VAE, which numbers the parts of each from 0; WAN 2.1's numbers all parts in a row."""
_ONLY_IN_STAGES = (".upsampler.", ".downsampler.")
"""Parts of diffusers' names that only Wan 2.2's VAE has."""


def to_diffusers_linear(native: str) -> str:
    """Return diffusers' name of a block's linear; raise ValueError for any other name."""
    block, path, _ = parse_linear(native)
    return f"blocks.{block}.{_LINEARS[path]}"


def to_native_linear(name: str) -> str | None:
    """Return the native name of a linear from its diffusers name; None when it is no linear of a block."""
    match = re.match(r"^blocks\.(\d+)\.(.+)$", name)
    if match is None or match[2] not in _NATIVE_LINEARS:
        return None
    return f"blocks.{match[1]}.{_NATIVE_LINEARS[match[2]]}"


def to_native_dit_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of diffusers' WanTransformer3DModel under native names."""
    return {to_native_dit_name(name): tensor for name, tensor in state.items()}


def to_native_dit_name(name: str) -> str:
    """Return the native name of a DiT weight; a native name is returned unchanged."""
    return _rename(name, _DIT)


def to_native_vae_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of diffusers' AutoencoderKLWan under native names."""
    rename = choose_vae_names(state)
    return {rename(name): tensor for name, tensor in state.items()}


def choose_vae_names(names: Iterable[str]) -> Callable[[str], str]:
    """Return the function that gives the native name of a VAE's weight, for the VAE that has these names.

    It returns a native name unchanged.
    """
    has_stages = any(part in name for name in names for part in _ONLY_IN_STAGES)
    return partial(_to_native_vae_name, has_stages=has_stages)


def _to_native_vae_name(name: str, has_stages: bool) -> str:
    if has_stages:
        name = _rename(name, _STAGES)
    else:
        name = re.sub(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", _rename_up_block, name)
    name = _rename(name, _VAE)
    return _rename(name, _RESIDUAL) if re.search(r"\.(downsamples|upsamples|middle)\.\d+\.", name) else name


def _rename_up_block(match: re.Match) -> str:
    index = int(match[3]) if match[2] == "resnets" else _RESNETS_IN_UP_BLOCK
    return f"decoder.upsamples.{int(match[1]) * (_RESNETS_IN_UP_BLOCK + 1) + index}."


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
