"""Folding WAN's latent mean and deviation into the tiny VAE, so that every WAN loader can use it."""

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ...wan.latents import normalize
from ...wan.spec import LATENTS_21
from .whole_clip_vae import encode_moments

MEAN, STD = torch.tensor(LATENTS_21.mean), torch.tensor(LATENTS_21.std)


def encode_frames(vae: AutoencoderKLWan, frames: Tensor) -> Tensor:
    """Encode frames `B F 3 H W` in [0, 1] to latents `B 16 f h w` in model space."""
    mean, _ = encode_moments(vae, frames.transpose(1, 2) * 2 - 1)
    return normalize(mean.float())


def fold_statistics(vae: AutoencoderKLWan, mean: Tensor, std: Tensor) -> None:
    """Change the 1x1x1 convolutions around the latents so that every channel gets WAN's mean and deviation.

    `mean` and `std`, `16` each, are those of the posterior means over the world's clips. Reconstructions stay
    the same.
    """
    factor = STD / std
    encode, decode = vae.quant_conv, vae.post_quant_conv
    channels = len(factor)
    with torch.no_grad():
        encode.bias[:channels] = (encode.bias[:channels] - mean) * factor + MEAN
        encode.weight[:channels] *= factor.view(-1, 1, 1, 1, 1)
        encode.bias[channels:] += 2 * factor.log()
        decode.weight /= factor.view(1, -1, 1, 1, 1)
        decode.bias += decode.weight.sum((2, 3, 4)) @ (mean * factor - MEAN)


def compute_channel_statistics(means: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation, `16` each, of the channels of posterior means `B 16 f h w`."""
    channels = means.transpose(0, 1).flatten(1)
    return channels.mean(1), channels.std(1)
