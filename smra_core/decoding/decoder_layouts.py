"""Layouts of WAN's two video VAEs, and the list of frozen blocks that the decoder is in each of them.

Two layouts are known of each: diffusers' `AutoencoderKLWan`, and the native one of the published weights,
which ComfyUI's `WanVAE` has too. The blocks hold modules, not weights, so that these may be moved or cast
later.
"""

from math import isqrt

import torch
from torch import nn

from ..wan.spec import COLORS, LatentSpace, find_latents
from .decoder_blocks import Attention, Block, ConvIn, Head, Residual, Unpatch, Upsample3d
from .frozen_layers import NormedConv
from .residual_stage import ResidualStage


def list_decoder_blocks(vae: nn.Module) -> list[Block | ResidualStage]:
    """Return the decoder's blocks in order. ValueError for any layout but those of WAN's two VAEs."""
    if hasattr(vae, "post_quant_conv") and hasattr(getattr(vae, "decoder", None), "up_blocks"):
        post_quant_conv, list_blocks = vae.post_quant_conv, _list_diffusers_blocks
    elif hasattr(vae, "conv2") and hasattr(getattr(vae, "decoder", None), "upsamples"):
        post_quant_conv, list_blocks = vae.conv2, _list_native_blocks
    else:
        raise ValueError(
            f"{type(vae).__name__} has no decoder of a known layout; give WAN's video VAE, as diffusers or "
            "ComfyUI load it."
        )
    blocks = list_blocks(vae.decoder, post_quant_conv)
    _check_stride(blocks, find_latents(post_quant_conv.weight.shape[0]))
    return blocks


def _check_stride(blocks: list[Block | ResidualStage], latents: LatentSpace) -> None:
    """Raise ValueError unless a latent cell becomes as many pixels as in WAN's VAE of these channels."""
    doublings = sum(isinstance(block, (Upsample3d, ResidualStage)) for block in blocks)
    stride = 2**doublings * blocks[-1].side
    if stride != latents.stride:
        raise ValueError(
            f"This VAE makes {stride}x{stride} pixels of a latent cell of {latents.channels} channels; "
            f"{latents.name}'s makes {latents.stride}x{latents.stride}. Choose {latents.vae_file}."
        )


def get_decoder_dtype(vae: nn.Module) -> torch.dtype:
    """Return the dtype of the decoder's weights."""
    return next(vae.decoder.parameters()).dtype


def _list_diffusers_blocks(decoder: nn.Module, post_quant_conv: nn.Module) -> list[Block | ResidualStage]:
    middle = decoder.mid_block
    first, *others = map(_convert_diffusers_residual, middle.resnets)
    blocks: list[Block | ResidualStage] = [ConvIn(post_quant_conv, decoder.conv_in), first]
    for attention, residual in zip(middle.attentions, others, strict=True):
        blocks += [Attention(attention.norm, attention.to_qkv, attention.proj), residual]
    for up in decoder.up_blocks:
        # Wan 2.2's stages have a shortcut and one upsampling, WAN 2.1's a list of none or one.
        upsampling = [up.upsampler] if getattr(up, "upsampler", None) else getattr(up, "upsamplers", None)
        parts = [*map(_convert_diffusers_residual, up.resnets), *map(_convert_upsampling, upsampling or ())]
        blocks += _join_stage(up, parts)
    return [*blocks, *_list_end(decoder.norm_out, decoder.conv_out)]


def _join_stage(stage: nn.Module, parts: list[Block]) -> list[Block | ResidualStage]:
    """Return the parts of a stage as one block if a shortcut goes around them, else as they are."""
    return parts if getattr(stage, "avg_shortcut", None) is None else [ResidualStage(tuple(parts))]


def _list_end(norm: nn.Module, conv: nn.Module) -> list[Block]:
    """Return the last convolution, and what makes a square of pixels of its channels."""
    return [Head(NormedConv(norm, conv)), Unpatch(isqrt(conv.weight.shape[0] // COLORS))]


def _convert_diffusers_residual(block: nn.Module) -> Residual:
    widened = isinstance(block.conv_shortcut, nn.Conv3d)
    return Residual(
        NormedConv(block.norm1, block.conv1),
        NormedConv(block.norm2, block.conv2),
        block.conv_shortcut if widened else None,
    )


def _list_native_blocks(decoder: nn.Module, post_quant_conv: nn.Module) -> list[Block | ResidualStage]:
    blocks: list[Block | ResidualStage] = [ConvIn(post_quant_conv, decoder.conv1)]
    for part in (*decoder.middle, *decoder.upsamples):
        blocks += _convert_native(part)
    norm, _, conv = decoder.head
    return [*blocks, *_list_end(norm, conv)]


def _convert_native(part: nn.Module) -> list[Block | ResidualStage]:
    if hasattr(part, "residual"):
        return [_convert_native_residual(part)]
    if hasattr(part, "to_qkv"):
        return [Attention(part.norm, part.to_qkv, part.proj)]
    if hasattr(part, "upsamples"):  # a stage of Wan 2.2's
        return _join_stage(part, [block for inner in part.upsamples for block in _convert_native(inner)])
    return [_convert_upsampling(part)]


def _convert_native_residual(block: nn.Module) -> Residual:
    norm_1, _, conv_1, norm_2, _, _, conv_2 = block.residual
    widened = not isinstance(block.shortcut, nn.Identity)
    return Residual(
        NormedConv(norm_1, conv_1), NormedConv(norm_2, conv_2), block.shortcut if widened else None
    )


def _convert_upsampling(module: nn.Module) -> Upsample3d:
    time_conv = module.time_conv if module.mode == "upsample3d" else None
    return Upsample3d(time_conv, module.resample[1])
