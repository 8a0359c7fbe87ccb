"""A VAE of the graph: latents in the model's space, and a private decoder that gradients can pass through.

The decoder is a copy (147 MB in bfloat16): the graph's own weights may be streamed or moved while a backward
pass still needs them, and ComfyUI's VAE.decode clamps in place.
"""

import torch
from torch import Tensor, nn

from ...smra_core.decoding.wan_decoder import WanVideoDecoder
from ...smra_core.wan.spec import LATENT_CHANNELS


def check_vae(vae) -> None:
    """Raise ValueError unless this is WAN 2.1's VAE."""
    net = vae.first_stage_model
    channels = getattr(net, "z_dim", None)
    if type(net).__name__ != "WanVAE" or channels != LATENT_CHANNELS:
        raise ValueError(
            f"This VAE is {type(net).__name__} with {channels} latent channels; WAN 2.1's has "
            f"{LATENT_CHANNELS}. Load wan_2.1_vae.safetensors."
        )


@torch.no_grad()
def encode(vae, model, frames: Tensor) -> Tensor:
    """Return latents `16 f h w` in the model's space, on the CPU, of frames `F 3 H W` in [0, 1], F = 4n+1."""
    latents = vae.encode(frames.movedim(1, -1))
    return model.model.process_latent_in(latents)[0].float().cpu()


def load_decoder(vae, device: torch.device, recompute: bool = False) -> WanVideoDecoder:
    """Return a private decoder with the weights of the graph's VAE; `recompute` saves memory."""
    return WanVideoDecoder.of(copy_vae(vae, device), recompute)


def copy_vae(vae, device: torch.device) -> nn.Module:
    """Return a frozen copy of the decoder and of the pointwise convolution before it, without an encoder."""
    from comfy.ldm.wan.vae import WanVAE

    source = vae.first_stage_model
    with torch.device("meta"):
        net = WanVAE(
            dim=source.dim,
            z_dim=source.z_dim,
            dim_mult=source.dim_mult,
            num_res_blocks=source.num_res_blocks,
            attn_scales=source.attn_scales,
            temperal_downsample=source.temperal_downsample,
        )
    for name in ("decoder", "conv2"):
        prefix = f"{name}."
        weights = {
            key.removeprefix(prefix): value.detach().to(device, vae.vae_dtype, copy=True)
            for key, value in vae.get_sd().items()
            if key.startswith(prefix)
        }
        getattr(net, name).load_state_dict(weights, assign=True)
    return net.requires_grad_(False).eval()
