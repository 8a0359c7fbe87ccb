"""WAN's two video VAEs with random weights and few channels, as diffusers builds them."""

from functools import partial

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import nn

from smra_core.wan.spec import LATENTS_21, LATENTS_22

SPACES = (LATENTS_21, LATENTS_22)
WIDTH = 4


def vae_arguments(space, width=WIDTH):
    """Arguments of AutoencoderKLWan; those of Wan 2.2 are the published ones but for the width."""
    if space is LATENTS_21:
        return dict(base_dim=width)
    return dict(
        base_dim=width, decoder_base_dim=width, z_dim=space.channels, is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_spatial=space.stride, latents_mean=list(space.mean),
        latents_std=list(space.std),
    )  # fmt: skip


def random_vae(space=LATENTS_21, **changes):
    torch.manual_seed(5)
    vae = AutoencoderKLWan(**{**vae_arguments(space), **changes}).requires_grad_(False)
    for module in vae.modules():
        if isinstance(module, WanUpsample):
            module.forward = partial(nn.Upsample.forward, module)  # without its detour through float32
    vae.decoder.conv_out.weight.mul_(0.25)  # so that no pixel reaches the clamp of diffusers
    return vae
