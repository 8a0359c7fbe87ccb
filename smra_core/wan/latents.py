"""Conversions of pixels and latents between the ranges of video files, the VAE and the DiT."""

import torch
from torch import Tensor

from .spec import TEMPORAL_STRIDE, find_latents


def as_video(frames: Tensor) -> Tensor:
    """Return frames `F 3 H W` in [0, 1] as pixels `1 3 F H W` in [-1, 1]."""
    return (frames * 2 - 1).transpose(0, 1)[None]


def as_frames(pixels: Tensor) -> Tensor:
    """Return pixels `3 F H W` in [-1, 1] as frames `F 3 H W` in [0, 1]; values outside are clamped."""
    return ((pixels + 1) / 2).clamp(0, 1).transpose(0, 1)


def split_by_latent(frames: Tensor) -> tuple[Tensor, ...]:
    """Split frames `F ...`, F = 4n+1, into those that each latent holds: one in the first, four in others."""
    return frames.split([1, *[TEMPORAL_STRIDE] * ((len(frames) - 1) // TEMPORAL_STRIDE)])


def normalize(latents: Tensor) -> Tensor:
    """Shift and scale latents `... C f h w` of the VAE's encoder to model space: mean 0, deviation 1."""
    mean, std = _match_statistics(latents)
    return (latents - mean) / std


def denormalize(latents: Tensor) -> Tensor:
    """Scale and shift latents `... C f h w` of model space back to what the VAE's decoder takes."""
    mean, std = _match_statistics(latents)
    return latents * std + mean


def _match_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return WAN's mean and deviation per channel, `C 1 1 1`, on the device and in the dtype of latents.

    ValueError unless the number of channels is that of one of WAN's VAEs.
    """
    space = find_latents(latents.shape[-4])
    mean, std = (latents.new_tensor(values).view(-1, 1, 1, 1) for values in (space.mean, space.std))
    return mean, std


def to_uint8(pixels: Tensor) -> Tensor:
    """Return pixels `... H W`, float in [0, 1], as uint8 on the same device: clamped, times 255, rounded."""
    return (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
