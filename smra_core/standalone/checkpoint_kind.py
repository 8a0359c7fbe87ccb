"""Recognition of checkpoints by the names and shapes in them: a WAN DiT that makes videos from text (WAN 2.1,
the experts of Wan 2.2, TI2V-5B) and its VAE are accepted, every other model is refused, and the message says
what it is.
"""

import re
from typing import Any

from ..storage.weight_check import join_names
from ..wan.spec import I2V_CHANNELS, LATENT_SPACES, LATENTS_21, LATENTS_22, PATCH, TEXT_DIM, LatentSpace
from .checkpoint_weights import Shapes, without_quantization

HEAD_DIM = 128
"""Width of an attention head in every WAN."""
_BLOCK = re.compile(r"^blocks\.([0-9]{1,3})\.")
_MOST_BLOCKS, _WIDEST = 100, 1 << 15
"""Limits far above the sizes of any WAN; a header that claims more is refused."""
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
_CELLS = PATCH[0] * PATCH[1] * PATCH[2]
_SERVED = "wan2.1_t2v_1.3B or _14B, an expert of wan2.2_t2v or wan2.2_i2v, or wan2.2_ti2v_5B"
"""Models that are accepted, by their names among ComfyUI's files."""
_STAGE_WEIGHT = "decoder.upsamples.0.upsamples.0.residual.2.weight"
"""Name that only Wan 2.2's VAE has, whose decoder consists of stages."""

_VARIANTS = (
    ("vace_patch_embedding.", "VACE (video editing)"),
    ("vace_blocks.", "VACE (video editing)"),
    ("control_adapter.", "Fun Camera (camera control)"),
    ("casual_audio_encoder.", "S2V (speech to video)"),
    ("audio_proj.audio_proj_glob_1.", "HuMo (audio and subject to video)"),
    ("face_adapter.", "Animate (character animation)"),
    ("pose_patch_embedding.", "Animate (character animation)"),
    ("patch_embedding_mask.", "SCAIL 2 (pose to video)"),
    ("patch_embedding_pose.", "SCAIL (pose to video)"),
    ("patch_embedding_global.", "WanDancer (music to dance)"),
    ("blocks.0.audio_cross_attn.", "MultiTalk (audio to video)"),
    ("blocks.0.cam_encoder.", "ReCamMaster (camera control)"),
    ("fps_embedding.", "SkyReels diffusion-forcing"),
    ("img_emb.emb_pos", "FLF2V (first and last frame to video)"),
    ("ref_conv.", "Fun Control (reference image)"),
    ("img_emb.", "I2V (image to video)"),
)
"""Beginnings of names that only a variant of WAN has. Where several fit, the first in this list counts."""
_OTHER_MODELS = (
    ("encoder.block.0.layer.0.selfattention.", "a T5 text encoder"),
    ("token_embedding.weight", "a T5 text encoder"),
    ("decoder.middle.0.residual.0.gamma", "a WAN VAE"),
    ("decoder.mid_block.resnets.0.", "a VAE"),
    ("decoder.mid.block_1.", "a VAE of Stable Diffusion or Flux"),
    ("lora_", "a LoRA"),
    ("lycoris_", "a LoRA"),
    ("txt_in.individual_token_refiner.", "HunyuanVideo"),
    ("double_blocks.0.", "Flux, Chroma or HunyuanVideo"),
    ("joint_blocks.0.", "Stable Diffusion 3"),
    ("input_blocks.0.", "a Stable Diffusion U-Net"),
    ("down_blocks.0.", "a Stable Diffusion U-Net"),
    ("adaln_single.", "LTX-Video or PixArt"),
    ("transformer_blocks.0.", "another video or image model in diffusers' names"),
    ("vision_model.", "a CLIP vision encoder"),
    ("text_model.", "a CLIP text encoder"),
    ("fnet.", "SEA-RAFT"),
    ("image_encoder.", "SAM"),
)
"""Models that people pick by mistake, by parts of their names in lower case."""


def find_prefix(names: Any) -> str:
    """Return the prefix of the native names in a file, such as `model.diffusion_model.`; or an empty text."""
    return next((p for p in _PREFIXES if any(name.startswith(p) for name in names)), "")


def build_dit_config(shapes: Shapes, source: str) -> dict[str, Any]:
    """Return the arguments of diffusers' WanTransformer3DModel for a DiT with these native names and shapes.

    Raises ValueError when the file is no DiT that makes videos from text or from a first frame (the message
    says what it is instead), and when its sizes are such as only a hostile file would have. `source` is the
    file's name in messages.
    """
    weights = without_quantization(shapes)
    _refuse_other_models(weights, source)
    _refuse_variants(weights, source)
    dim, channels = weights["patch_embedding.weight"][:2]
    out = weights["head.head.weight"][0] // _CELLS
    check_channels(channels, out, source)
    config = {
        "num_attention_heads": dim // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "in_channels": channels,
        "out_channels": out,
        "ffn_dim": weights["blocks.0.ffn.0.weight"][0],
        "num_layers": _count_blocks(weights, source),
        "text_dim": weights["text_embedding.0.weight"][1],
        "freq_dim": weights["time_embedding.0.weight"][1],
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
    }
    _refuse_sizes(config, source)
    return config


_NEEDED = {
    "patch_embedding.weight": 5,
    "head.head.weight": 2,
    "blocks.0.ffn.0.weight": 2,
    "text_embedding.0.weight": 2,
    "time_embedding.0.weight": 2,
}
"""Weights whose shapes give the sizes of the DiT, with their numbers of dimensions."""


def _refuse_other_models(shapes: Shapes, source: str) -> None:
    missing = [name for name, dims in _NEEDED.items() if len(shapes.get(name, ())) != dims]
    if missing:
        kind = _guess_kind(shapes)
        raise ValueError(
            f"{source} is not a WAN DiT: {missing[0]} is missing or misshapen; it "
            + (f"looks like {kind}. " if kind else f"has {join_names(sorted(shapes))}. ")
            + "Choose wan2.1_t2v_1.3B or _14B, a file of ComfyUI's diffusion_models folder."
        )


def _guess_kind(shapes: Shapes) -> str:
    """Return what kind of model a file with these names looks like; empty when unknown."""
    names = [name.lower() for name in shapes]
    if any(re.search(r"\.lora_(a|b|down|up)\b", name) for name in names):
        return "a LoRA"
    return next((kind for mark, kind in _OTHER_MODELS if any(mark in name for name in names)), "")


def _refuse_variants(shapes: Shapes, source: str) -> None:
    for mark, kind in _VARIANTS:
        if any(name.startswith(mark) for name in shapes):
            raise ValueError(
                f"{source} is WAN {kind}. From files the method needs a model that makes videos from text or "
                f"from a first frame alone: {_SERVED}. In ComfyUI I2V 2.1, Fun and VACE are trained, too."
            )


def check_channels(channels: int, out: int, source: str) -> None:
    """Raise ValueError unless a DiT takes the channels that it gives, or those of a first frame besides."""
    if (channels == out and out in LATENT_SPACES) or (channels, out) == (I2V_CHANNELS, LATENTS_21.channels):
        return
    raise ValueError(
        f"{source} takes {channels} channels and gives {out}: a control model, such as Fun Control. From "
        f"files the method needs a model that takes as many as it gives, "
        f"{' or '.join(map(str, LATENT_SPACES))}, or {I2V_CHANNELS} for image to video: {_SERVED}. "
        "In ComfyUI this one is trained, too."
    )


def _count_blocks(shapes: Shapes, source: str) -> int:
    numbers = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    if numbers != set(range(len(numbers))):
        missing = min(set(range(len(numbers))) - numbers)
        raise ValueError(
            f"{source} has {len(numbers)} blocks, but no block {missing}. It is a damaged file, or one of "
            "several parts: give the folder, or the file in one piece."
        )
    return len(numbers)


def _refuse_sizes(config: dict[str, Any], source: str) -> None:
    limits = {"num_layers": _MOST_BLOCKS, "ffn_dim": _WIDEST, "text_dim": _WIDEST, "freq_dim": _WIDEST}
    limits["num_attention_heads"] = _WIDEST // HEAD_DIM
    for name, most in limits.items():
        if not 1 <= config[name] <= most:
            raise ValueError(
                f"{source}: its {name} is {config[name]}; WAN's is 1 to {most}. The file is "
                "damaged, or not a WAN DiT: download the model again."
            )


def build_vae_config(shapes: Shapes, source: str) -> dict[str, Any]:
    """Return the arguments of diffusers' AutoencoderKLWan for a VAE with these native names and shapes.

    Raises ValueError when the file is not one of WAN's two VAEs, as `build_dit_config` does.
    """
    latents = LATENTS_22 if _STAGE_WEIGHT in shapes else LATENTS_21
    gamma, latent = shapes.get("decoder.head.0.gamma", ()), shapes.get("conv2.weight", ())
    if not gamma or len(latent) != 5:
        kind = _guess_kind(shapes)
        raise ValueError(
            f"{source} is not a WAN VAE: it "
            + (f"looks like {kind}. " if kind else f"has {join_names(sorted(shapes))}. ")
            + f"Choose {LATENTS_21.vae_file}, or for TI2V-5B {LATENTS_22.vae_file}."
        )
    if latent[0] != latents.channels:
        raise ValueError(
            f"{source} has {latent[0]} latent channels; {latents.name}'s VAE has {latents.channels}. Choose "
            f"{latents.vae_file}."
        )
    if not 1 <= gamma[0] <= 1024:
        raise ValueError(
            f"{source}: its width is {gamma[0]}; WAN's VAEs have 96 and 256, and at most 1024 is read. "
            f"Choose {latents.vae_file}."
        )
    if latents is LATENTS_21:
        return {"base_dim": gamma[0], "z_dim": latents.channels}
    return _build_vae_22_config(shapes, gamma[0], latents, source)


def _build_vae_22_config(shapes: Shapes, width: int, latents: LatentSpace, source: str) -> dict[str, Any]:
    """Return the arguments for Wan 2.2's VAE, whose encoder has a width of its own and which takes and gives
    squares of pixels as channels.
    """
    first, last = shapes.get("encoder.conv1.weight", ()), shapes.get("decoder.head.2.weight", ())
    channels = latents.image_channels
    is_whole = len(first) == len(last) == 5 and (first[1], last[0]) == (channels, channels)
    if not is_whole or not 1 <= first[0] <= 1024:
        raise ValueError(
            f"{source} is no whole VAE of Wan 2.2: encoder.conv1.weight and decoder.head.2.weight are "
            f"{first} and {last}; they must take and give {channels} channels. Download {latents.vae_file} "
            "again."
        )
    return {
        "base_dim": first[0],
        "decoder_base_dim": width,
        "z_dim": latents.channels,
        "is_residual": True,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": latents.patch,
        "scale_factor_spatial": latents.stride,
        "latents_mean": list(latents.mean),
        "latents_std": list(latents.std),
    }


def guess_text_kind(shapes: Shapes) -> str:
    """Return what a file that should be UMT5 looks like instead; empty when unknown."""
    if "shared.weight" in shapes and "encoder.block.0.layer.0.SelfAttention.q.weight" in shapes:
        return f"T5 of width {shapes['shared.weight'][-1]}, not UMT5 of width {TEXT_DIM}"
    return _guess_kind(shapes)
