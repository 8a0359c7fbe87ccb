"""WAN 2.1 on its own, without ComfyUI: diffusers' transformer and video VAE, transformers' UMT5."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from ..decoding.fast_conv3d import with_fast_layers
from ..wan.interfaces import Prediction
from ..wan.module_names import to_native_linear
from ..wan.spec import LATENT_MEAN, LATENT_STD, TIMESTEPS, WanSpec, find_spec


class DiffusersDenoiser:
    """A frozen `WanTransformer3DModel` (protocol: wan.interfaces.Denoiser)."""

    def __init__(self, dit: WanTransformer3DModel, checkpoint: bool = False):
        """With `checkpoint`, blocks keep only their inputs for the backward pass and compute again."""
        self.dit = dit.eval().requires_grad_(False)
        self.spec = spec_of(dit)
        if checkpoint:
            dit.enable_gradient_checkpointing()

    def linears(self) -> dict[str, nn.Module]:
        """Linears of all blocks by native name."""
        named = ((to_native_linear(name), module) for name, module in self.dit.named_modules())
        return {name: module for name, module in named if name is not None}

    def velocity(
        self, noisy_latents: Tensor, sigma: Tensor, context: Tensor, token_block: int | None = None
    ) -> Prediction:
        """See wan.interfaces.Denoiser; the velocity comes back in the dtype of `noisy_latents`."""
        dtype = self.dit.patch_embedding.weight.dtype
        with self._collect_tokens(token_block) as tokens:
            velocity = self.dit(
                noisy_latents.to(dtype), sigma * TIMESTEPS, context.to(dtype), return_dict=False
            )[0]
        return Prediction(velocity.to(noisy_latents.dtype), tokens[0] if tokens else None)

    @contextmanager
    def _collect_tokens(self, token_block: int | None) -> Iterator[list[Tensor]]:
        """Collect the tokens that leave a block where they enter what follows: outside of its checkpoint."""
        tokens: list[Tensor] = []
        if token_block is None:
            yield tokens
            return
        if not 0 <= token_block < self.spec.blocks:
            raise ValueError(
                f"There is no block {token_block} to tap; this model has 0 to {self.spec.blocks - 1}."
            )
        last = token_block + 1 == self.spec.blocks
        follower = self.dit.norm_out if last else self.dit.blocks[token_block + 1]

        def keep(module: nn.Module, inputs: tuple) -> None:
            if not tokens:  # a checkpointed block runs again in backward
                tokens.append(inputs[0])

        handle = follower.register_forward_pre_hook(keep)
        try:
            yield tokens
        finally:
            handle.remove()


def spec_of(dit: WanTransformer3DModel) -> WanSpec:
    config = dit.config
    dim = config.num_attention_heads * config.attention_head_dim
    return find_spec(config.num_layers, dim, config.ffn_dim, config.num_attention_heads)


class DiffusersCodec:
    """A frozen `AutoencoderKLWan` in model space (protocol: wan.interfaces.VideoCodec)."""

    def __init__(self, vae: AutoencoderKLWan):
        self.vae = with_fast_layers(vae.eval().requires_grad_(False))
        weight = vae.post_quant_conv.weight
        self.mean = torch.tensor(LATENT_MEAN, dtype=weight.dtype, device=weight.device).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(LATENT_STD, dtype=weight.dtype, device=weight.device).view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See wan.interfaces.VideoCodec."""
        posterior = self.vae.encode(pixels.to(self.mean)).latent_dist
        return (posterior.mean - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See wan.interfaces.VideoCodec."""
        return self.vae.decode(latents.to(self.mean) * self.std + self.mean).sample
