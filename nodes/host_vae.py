"""The graph's VAE: latents in the model's space, and a private decoder that gradients can pass through.

The decoder is a copy (147 MB in bfloat16): the graph's own weights may be streamed or moved while a backward
pass still needs them, and the host's VAE.decode clamps in place.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..smra_core.cpu_layers import channel_norm
from ..smra_core.streaming_decode import FrozenDecoder, Layer, causal, residual, upsampling
from ..smra_core.wan import LATENT_CHANNELS


def check_vae(vae) -> None:
    """ValueError unless this is WAN 2.1's VAE."""
    net = vae.first_stage_model
    channels = getattr(net, "z_dim", None)
    if type(net).__name__ != "WanVAE" or channels != LATENT_CHANNELS:
        raise ValueError(
            f"This VAE is {type(net).__name__} with {channels} latent channels; WAN 2.1's has "
            f"{LATENT_CHANNELS}. Load wan_2.1_vae.safetensors."
        )


@torch.no_grad()
def encode(vae, model, frames: Tensor) -> Tensor:
    """Latents `16 f h w` in the model's space, on the CPU, of frames `F 3 H W` in [0, 1], F = 4n+1."""
    latents = vae.encode(frames.movedim(1, -1))
    return model.model.process_latent_in(latents)[0].float().cpu()


def frozen_decoder(vae, device: torch.device) -> FrozenDecoder:
    """A private decoder with the weights of the graph's VAE."""
    decoder, unquantised = private_decoder(vae, device)
    return FrozenDecoder(native_layers(decoder, unquantised), vae.vae_dtype)


def private_decoder(vae, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """A copy of the decoder and of the pointwise convolution before it, frozen."""
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
    parts = []
    for name in ("decoder", "conv2"):
        part, prefix = getattr(net, name), f"{name}."
        weights = {
            key.removeprefix(prefix): value.detach().to(device, vae.vae_dtype, copy=True)
            for key, value in vae.get_sd().items()
            if key.startswith(prefix)
        }
        part.load_state_dict(weights, assign=True)
        parts.append(part.requires_grad_(False).eval())
    return parts[0], parts[1]


def native_layers(decoder: nn.Module, unquantised: nn.Module) -> list[Layer]:
    """The parts of the host's decoder in order, under the names that the streamed decoder knows."""
    norm, _, last = decoder.head
    layers = [Layer(lambda x, carry: causal(decoder.conv1, causal(unquantised, x, carry), carry), 1)]
    for part in (*decoder.middle, *decoder.upsamples):
        layers.append(_layer(part))
    finish = lambda x, carry: causal(last, F.silu(_norm(norm)(x)), carry)  # noqa: E731
    return [*layers, Layer(finish, 1)]


def _layer(part: nn.Module) -> Layer:
    if hasattr(part, "residual"):
        first, _, conv1, second, _, _, conv2 = part.residual
        named = SimpleNamespace(
            norm1=_norm(first), conv1=conv1, norm2=_norm(second), conv2=conv2, conv_shortcut=part.shortcut
        )
        return residual(named)  # type: ignore[arg-type]
    if hasattr(part, "resample"):
        return upsampling(part)
    return Layer(lambda x, carry: part(x), 0)


def _norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    plain = SimpleNamespace(scale=norm.scale, gamma=norm.gamma, bias=0.0 if norm.bias is None else norm.bias)
    return lambda x: channel_norm(plain, x)  # type: ignore[arg-type]
