"""Layouts of WAN 2.1's video VAE, and the list of frozen blocks that its decoder is in each of them.

Two layouts are known: diffusers' `AutoencoderKLWan`, and the native one of the published weights, which
ComfyUI's `WanVAE` has too. The blocks hold modules, not weights, so that these may be moved or cast later.
"""

import torch
from torch import nn

from ..wan.spec import LATENTS_21
from .decoder_blocks import Attention, Block, ConvIn, Head, Residual, Upsample3d
from .frozen_layers import NormedConv


def list_decoder_blocks(vae: nn.Module) -> list[Block]:
    """Return the decoder's blocks in order. ValueError for the VAE of WAN 2.2 and for any unknown layout."""
    if hasattr(vae, "post_quant_conv") and hasattr(getattr(vae, "decoder", None), "up_blocks"):
        post_quant_conv, list_blocks = vae.post_quant_conv, _list_diffusers_blocks
    elif hasattr(vae, "conv2") and hasattr(getattr(vae, "decoder", None), "upsamples"):
        post_quant_conv, list_blocks = vae.conv2, _list_native_blocks
    else:
        raise ValueError(
            f"{type(vae).__name__} has no decoder of a known layout; give WAN 2.1's video VAE, as "
            "diffusers or ComfyUI load it."
        )
    _check_wan_21(vae, post_quant_conv)
    return list_blocks(vae.decoder, post_quant_conv)


def _check_wan_21(vae: nn.Module, post_quant_conv: nn.Module) -> None:
    channels = post_quant_conv.weight.shape[0]
    patched = getattr(getattr(vae, "config", None), "patch_size", None) is not None
    if channels != LATENTS_21.channels or patched:
        raise ValueError(
            f"This VAE has {channels} latent channels and is WAN 2.2's; the method needs WAN 2.1's "
            f"with {LATENTS_21.channels}. Choose the VAE that came with Wan2.1-T2V."
        )


def get_decoder_dtype(vae: nn.Module) -> torch.dtype:
    """Return the dtype of the decoder's weights."""
    return next(vae.decoder.parameters()).dtype


def _list_diffusers_blocks(decoder: nn.Module, post_quant_conv: nn.Module) -> list[Block]:
    middle = decoder.mid_block
    first, *others = map(_convert_diffusers_residual, middle.resnets)
    blocks: list[Block] = [ConvIn(post_quant_conv, decoder.conv_in), first]
    for attention, residual in zip(middle.attentions, others, strict=True):
        blocks += [Attention(attention.norm, attention.to_qkv, attention.proj), residual]
    for up in decoder.up_blocks:
        blocks += map(_convert_diffusers_residual, up.resnets)
        blocks += [_convert_upsampling(module) for module in up.upsamplers or ()]
    return [*blocks, Head(NormedConv(decoder.norm_out, decoder.conv_out))]


def _convert_diffusers_residual(block: nn.Module) -> Residual:
    widened = isinstance(block.conv_shortcut, nn.Conv3d)
    return Residual(
        NormedConv(block.norm1, block.conv1),
        NormedConv(block.norm2, block.conv2),
        block.conv_shortcut if widened else None,
    )


def _list_native_blocks(decoder: nn.Module, post_quant_conv: nn.Module) -> list[Block]:
    blocks: list[Block] = [ConvIn(post_quant_conv, decoder.conv1)]
    for part in (*decoder.middle, *decoder.upsamples):
        if hasattr(part, "residual"):
            blocks.append(_convert_native_residual(part))
        elif hasattr(part, "to_qkv"):
            blocks.append(Attention(part.norm, part.to_qkv, part.proj))
        else:
            blocks.append(_convert_upsampling(part))
    norm, _, conv = decoder.head
    return [*blocks, Head(NormedConv(norm, conv))]


def _convert_native_residual(block: nn.Module) -> Residual:
    norm_1, _, conv_1, norm_2, _, _, conv_2 = block.residual
    widened = not isinstance(block.shortcut, nn.Identity)
    return Residual(
        NormedConv(norm_1, conv_1), NormedConv(norm_2, conv_2), block.shortcut if widened else None
    )


def _convert_upsampling(module: nn.Module) -> Upsample3d:
    time_conv = module.time_conv if module.mode == "upsample3d" else None
    return Upsample3d(time_conv, module.resample[1])
