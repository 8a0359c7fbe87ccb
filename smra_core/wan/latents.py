"""Pixels and latents between the ranges that people, the VAE and the DiT use."""

from torch import Tensor

from .spec import LATENT_MEAN, LATENT_STD


def as_video(frames: Tensor) -> Tensor:
    """Frames `F 3 H W` in [0, 1] to pixels `1 3 F H W` in [-1, 1]."""
    return (frames * 2 - 1).transpose(0, 1)[None]


def as_frames(pixels: Tensor) -> Tensor:
    """Pixels `3 F H W` in [-1, 1] to frames `F 3 H W` in [0, 1]."""
    return ((pixels + 1) / 2).clamp(0, 1).transpose(0, 1)


def denormalize(latents: Tensor) -> Tensor:
    """From model space to what the VAE's decoder takes."""
    mean, std = (latents.new_tensor(values).view(-1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    return latents * std + mean
