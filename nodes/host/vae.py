"""A VAE of the graph: latents in the model's space, and a private decoder that gradients can pass through.

The decoder is a copy (147 MB in bfloat16; of Wan 2.2's VAE 1.1 GB): the graph's own weights may be streamed
or moved while a backward pass still needs them, and ComfyUI's VAE.decode clamps in place.
"""

from contextlib import suppress

import torch
from torch import Tensor, nn

from ...smra_core.decoding.wan_decoder import WanVideoDecoder
from ...smra_core.wan.spec import COLORS, LATENTS_21, LATENTS_22, TEMPORAL_STRIDE, LatentSpace


def check_vae(vae, latents: LatentSpace) -> None:
    """Raise ValueError unless this VAE has these latents: 3 channels of pixels in and out, and as many
    channels of latents, pixels and frames a latent as WAN's own.

    The class alone does not tell: upscaling (12 channels out), RGBA (4 in and out) and image VAEs are built
    of the same one.
    """
    seen = _describe_vae(getattr(vae, "first_stage_model", None))
    expected = {
        "class": "WanVAE",
        "channels of latents": latents.channels,
        "channels of pixels in": COLORS,
        "channels of pixels out": COLORS,
        "pixels a latent": latents.stride,
        "frames a latent": TEMPORAL_STRIDE,
    }
    wrong = [
        f"{name} {seen.get(name, 'unknown')} instead of {value}"
        for name, value in expected.items()
        if seen.get(name) != value
    ]
    if wrong:
        raise ValueError(
            f"This VAE is not {latents.name}'s, which the MODEL needs: it has {', '.join(wrong)}. Load "
            f"{latents.vae_file}, or the original of which this is a variant."
        )


def _describe_vae(net) -> dict[str, str | int]:
    """Return what a VAE is, as far as its attributes and the shapes of its weights say."""
    seen: dict[str, str | int] = {"class": type(net).__name__}
    with suppress(AttributeError, IndexError, TypeError):
        side = (LATENTS_22 if _has_stages(net) else LATENTS_21).patch
        seen["channels of latents"] = net.z_dim
        seen["channels of pixels in"] = net.encoder.conv1.weight.shape[1] // side**2
        seen["channels of pixels out"] = net.decoder.head[-1].weight.shape[0] // side**2
        seen["pixels a latent"] = side * 2 ** (len(net.dim_mult) - 1)
        seen["frames a latent"] = 2 ** sum(net.temperal_downsample)
    return seen


def _has_stages(net) -> bool:
    """Return whether this is the architecture of Wan 2.2's VAE, whose stages have shortcuts."""
    return hasattr(net.decoder.upsamples[0], "avg_shortcut")


@torch.no_grad()
def encode(vae, model, frames: Tensor) -> Tensor:
    """Return latents `C f h w` in the model's space, on the CPU, of frames `F 3 H W` in [0, 1], F = 4n+1."""
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
    source = vae.first_stage_model
    dtype = torch.float32 if vae.vae_dtype == torch.float16 else vae.vae_dtype
    # Only the VAE of Wan 2.2 has another width in its decoder.
    width = {"dec_dim": source.decoder.dim} if _has_stages(source) else {}
    with torch.device("meta"):
        net = type(source)(
            dim=source.dim,
            z_dim=source.z_dim,
            dim_mult=source.dim_mult,
            num_res_blocks=source.num_res_blocks,
            attn_scales=source.attn_scales,
            temperal_downsample=source.temperal_downsample,
            **width,
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
