"""Giving the tiny VAE WAN's own latent statistics, so that every WAN loader can use it unchanged."""

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ...wan.spec import LATENT_MEAN, LATENT_STD
from .whole_clip_vae import decode_clip, encode_moments

CHANNELS = (1, -1, 1, 1, 1)
MEAN, STD = torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD)


def to_latents(vae: AutoencoderKLWan, frames: Tensor) -> Tensor:
    """Model-space latents `B 16 f h w` of frames `B F 3 H W` in [0, 1]."""
    mean, _ = encode_moments(vae, frames.transpose(1, 2) * 2 - 1)
    return (mean.float() - MEAN.view(CHANNELS)) / STD.view(CHANNELS)


def to_frames(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Frames `B F 3 H W` in [0, 1] of model-space latents."""
    pixels = decode_clip(vae, latents * STD.view(CHANNELS) + MEAN.view(CHANNELS)).float()
    return ((pixels + 1) / 2).clamp(0, 1).transpose(1, 2)


def fold_statistics(vae: AutoencoderKLWan, mean: Tensor, std: Tensor) -> None:
    """Change the 1x1x1 convolutions around the latents so that a channel of this mean and deviation gets
    WAN's.

    `mean` and `std` are `16`: of the posterior means over the world's clips. Reconstructions stay the same.
    """
    factor = STD / std
    encode, decode = vae.quant_conv, vae.post_quant_conv
    channels = len(factor)
    with torch.no_grad():
        encode.bias[:channels] = (encode.bias[:channels] - mean) * factor + MEAN
        encode.weight[:channels] *= factor.view(-1, 1, 1, 1, 1)
        encode.bias[channels:] += 2 * factor.log()
        decode.weight /= factor.view(CHANNELS)
        decode.bias += decode.weight.sum((2, 3, 4)) @ (mean * factor - MEAN)


def channel_statistics(means: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation `16` of posterior means `B 16 f h w`."""
    channels = means.transpose(0, 1).flatten(1)
    return channels.mean(1), channels.std(1)
