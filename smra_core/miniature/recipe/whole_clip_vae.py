"""Encoding and decoding of whole clips with the modules of diffusers' AutoencoderKLWan, for training.

Diffusers encodes and decodes chunk by chunk with caches, which is right for inference and slow to train
through. Over a whole clip the causal convolutions pad by themselves, and only the temporal resampling needs
care, because it leaves out the first frame. The results equal those of diffusers' own encode and decode
(without its clamp).
"""

from collections.abc import Iterable

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from einops import rearrange
from torch import Tensor, nn


def encode_moments(vae: AutoencoderKLWan, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode pixels `B 3 F H W` in [-1, 1], F = 4n+1, to the posterior mean and log variance `B 16 f h w`."""
    encoder = vae.encoder
    x = _run_sequence(encoder.down_blocks, encoder.conv_in(pixels))
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(_run_middle(encoder.mid_block, x))))
    mean, log_variance = vae.quant_conv(x).chunk(2, 1)
    return mean, log_variance


def decode_clip(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode latents `B 16 f h w`, as the encoder gives them, to pixels `B 3 F H W` that are not clamped."""
    decoder = vae.decoder
    x = _run_middle(decoder.mid_block, decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        x = _run_sequence(block.resnets, x)
        x = _run_sequence(block.upsamplers or (), x)
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))


def _run_sequence(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = _resample(module, x) if isinstance(module, WanResample) else module(x)
    return x


def _run_middle(block: nn.Module, x: Tensor) -> Tensor:
    x = block.resnets[0](x)
    for attention, residual in zip(block.attentions, block.resnets[1:], strict=True):
        x = residual(attention(x))
    return x


def _resample(module: WanResample, x: Tensor) -> Tensor:
    is_clip = x.shape[2] > 1
    if module.mode == "upsample3d" and is_clip:
        later = rearrange(module.time_conv(x[:, :, 1:]), "b (two c) t h w -> b c (t two) h w", two=2)
        x = torch.cat([x[:, :, :1], later], 2)
    frames = x.shape[2]
    x = module.resample(rearrange(x, "b c t h w -> (b t) c h w"))
    x = rearrange(x, "(b t) c h w -> b c t h w", t=frames)
    if module.mode == "downsample3d" and is_clip:
        x = torch.cat([x[:, :, :1], module.time_conv(x)], 2)
    return x


def initialize(vae: AutoencoderKLWan) -> None:
    """Initialize a tiny video VAE so that it trains well.

    Convolutions have fan-in scale and look mostly at the present frame, residual branches start at zero, time
    resampling starts as a copy, and the posterior starts narrow (its noise would drown the latents).
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            _initialize_convolution(name, module)
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
            module.conv1.weight.data *= 1.5
        if isinstance(module, WanAttentionBlock):
            nn.init.zeros_(module.proj.weight)
    half = vae.quant_conv.bias.shape[0] // 2
    vae.quant_conv.bias.data[half:] = -5
    vae.quant_conv.weight.data[half:] *= 0.1
    vae.decoder.conv_out.weight.data *= 0.5


def _initialize_convolution(name: str, conv: nn.Conv2d | nn.Conv3d) -> None:
    weight = conv.weight.data
    nn.init.normal_(weight, std=(weight.shape[1] * weight.shape[-1] * weight.shape[-2]) ** -0.5)
    nn.init.zeros_(conv.bias)
    if weight.ndim == 5 and weight.shape[2] == 3:
        if name.endswith("time_conv"):
            copies = weight.shape[0] // weight.shape[1]
            weight *= 0.05
            weight[:, :, -1, 0, 0] += torch.eye(weight.shape[1]).repeat(copies, 1)
        else:
            weight[:, :, :2] *= 0.1
