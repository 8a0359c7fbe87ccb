"""A VAE of the graph: latents in the model's space, and a private decoder that gradients can pass through.

The decoder is a copy (147 MB in bfloat16): the graph's own weights may be streamed or moved while a backward
pass still needs them, and ComfyUI's VAE.decode clamps in place.
"""

from contextlib import suppress

import torch
from torch import Tensor, nn

from ...smra_core.decoding.wan_decoder import WanVideoDecoder
from ...smra_core.wan.spec import LATENTS_21, TEMPORAL_STRIDE


def check_vae(vae) -> None:
    """Raise ValueError unless this is WAN 2.1's VAE: 3 channels of pixels in and out, 16 of latents, and a
    latent for 8x8 pixels and 4 frames.

    The class alone does not tell: upscaling (12 channels out), RGBA (4 in and out) and image VAEs are built
    of the same one.
    """
    net = getattr(vae, "first_stage_model", None)
    seen = _describe_vae(net)
    if seen != _WAN:
        wrong = [f"{name} {seen.get(name, 'unknown')} instead of {value}" for name, value in _WAN.items()]
        wrong = [text for text, name in zip(wrong, _WAN, strict=True) if seen.get(name) != _WAN[name]]
        raise ValueError(
            f"This VAE is not WAN 2.1's: it has {', '.join(wrong)}. Load wan_2.1_vae.safetensors, or the "
            "original of which this is a variant."
        )


_WAN = {
    "class": "WanVAE",
    "channels of latents": LATENTS_21.channels,
    "channels of pixels in": 3,
    "channels of pixels out": 3,
    "pixels a latent": LATENTS_21.stride,
    "frames a latent": TEMPORAL_STRIDE,
}
"""What `_describe_vae` reads from WAN 2.1's VAE."""


def _describe_vae(net) -> dict[str, str | int]:
    """Return what a VAE is, as far as its attributes and the shapes of its weights say."""
    seen: dict[str, str | int] = {"class": type(net).__name__}
    with suppress(AttributeError, IndexError, TypeError):
        seen["channels of latents"] = net.z_dim
        seen["channels of pixels in"] = net.encoder.conv1.weight.shape[1]
        seen["channels of pixels out"] = net.decoder.head[-1].weight.shape[0]
        seen["pixels a latent"] = 2 ** (len(net.dim_mult) - 1)
        seen["frames a latent"] = 2 ** sum(net.temperal_downsample)
    return seen


@torch.no_grad()
def encode(vae, model, frames: Tensor) -> Tensor:
    """Return latents `16 f h w` in the model's space, on the CPU, of frames `F 3 H W` in [0, 1], F = 4n+1."""
    latents = vae.encode(frames.movedim(1, -1))
    return model.model.process_latent_in(latents)[0].float().cpu()


def load_decoder(vae, device: torch.device, recompute: bool = False) -> WanVideoDecoder:
    """Return a private decoder with the weights of the graph's VAE; `recompute` saves memory."""
    return WanVideoDecoder.of(copy_vae(vae, device), recompute)


def copy_vae(vae, device: torch.device) -> nn.Module:
    """Return a frozen copy of the decoder and of the pointwise convolution before it, without an encoder.

    Where ComfyUI runs the VAE in float16 (cards without bfloat16, or --fp16-vae) the copy is in float32: the
    gradient of the flow loss with respect to a pixel is about 1e-10, which float16 rounds to zero.
    """
    from comfy.ldm.wan.vae import WanVAE

    source = vae.first_stage_model
    dtype = torch.float32 if vae.vae_dtype == torch.float16 else vae.vae_dtype
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
            key.removeprefix(prefix): value.detach().to(device, dtype, copy=True)
            for key, value in vae.get_sd().items()
            if key.startswith(prefix)
        }
        getattr(net, name).load_state_dict(weights, assign=True)
    return net.requires_grad_(False).eval()
