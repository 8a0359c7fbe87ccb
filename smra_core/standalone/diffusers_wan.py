"""WAN 2.1 on its own, without ComfyUI: diffusers' transformer and video VAE, transformers' UMT5."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from ..decoding.fast_conv3d import with_fast_layers
from ..wan.interfaces import Prediction
from ..wan.module_names import native_linear
from ..wan.spec import LATENT_MEAN, LATENT_STD, TEXT_TOKENS, TIMESTEPS, WanSpec, named_spec


class DiffusersDenoiser:
    """A frozen `WanTransformer3DModel` (protocol: backbone.Denoiser)."""

    def __init__(self, dit: WanTransformer3DModel, checkpoint: bool = False):
        """With `checkpoint`, blocks keep only their inputs for the backward pass and compute again."""
        self.dit = dit.eval().requires_grad_(False)
        self.spec = spec_of(dit)
        if checkpoint:
            dit.enable_gradient_checkpointing()

    def linears(self) -> dict[str, nn.Module]:
        """Linears of all blocks by native name."""
        named = ((native_linear(name), module) for name, module in self.dit.named_modules())
        return {name: module for name, module in named if name is not None}

    def velocity(
        self, noisy_latents: Tensor, sigma: Tensor, context: Tensor, tap: int | None = None
    ) -> Prediction:
        """See backbone.Denoiser; the velocity comes back in the dtype of `noisy_latents`."""
        dtype = self.dit.patch_embedding.weight.dtype
        with self._tapped(tap) as tokens:
            velocity = self.dit(
                noisy_latents.to(dtype), sigma * TIMESTEPS, context.to(dtype), return_dict=False
            )[0]
        return Prediction(velocity.to(noisy_latents.dtype), tokens[0] if tokens else None)

    @contextmanager
    def _tapped(self, tap: int | None) -> Iterator[list[Tensor]]:
        """Collect the tokens that leave a block where they enter what follows: outside of its checkpoint."""
        tokens: list[Tensor] = []
        if tap is None:
            yield tokens
            return
        if not 0 <= tap < self.spec.blocks:
            raise ValueError(f"There is no block {tap} to tap; this model has 0 to {self.spec.blocks - 1}.")
        last = tap + 1 == self.spec.blocks
        follower = self.dit.norm_out if last else self.dit.blocks[tap + 1]

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
    return named_spec(config.num_layers, dim, config.ffn_dim, config.num_attention_heads)


class DiffusersCodec:
    """A frozen `AutoencoderKLWan` in model space (protocol: backbone.VideoCodec)."""

    def __init__(self, vae: AutoencoderKLWan):
        self.vae = with_fast_layers(vae.eval().requires_grad_(False))
        weight = vae.post_quant_conv.weight
        self.mean = torch.tensor(LATENT_MEAN, dtype=weight.dtype, device=weight.device).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(LATENT_STD, dtype=weight.dtype, device=weight.device).view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See backbone.VideoCodec."""
        posterior = self.vae.encode(pixels.to(self.mean)).latent_dist
        return (posterior.mean - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See backbone.VideoCodec."""
        return self.vae.decode(latents.to(self.mean) * self.std + self.mean).sample


class Umt5Text:
    """WAN's text encoder, UMT5-XXL (protocol: backbone.TextEncoder)."""

    def __init__(self, encoder: nn.Module, tokenizer):
        self.encoder, self.tokenizer = encoder.eval().requires_grad_(False), tokenizer

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """`B 512 4096`; longer captions are cut, positions after the end are zero as WAN was trained."""
        tokens = self.tokenizer(
            [_tidy(prompt) for prompt in prompts],
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        device = next(self.encoder.parameters()).device
        mask = tokens.attention_mask.to(device)
        context = self.encoder(tokens.input_ids.to(device), mask).last_hidden_state
        return context * mask[..., None].to(context.dtype)


def _tidy(prompt: str) -> str:
    """Mend broken encodings and white space, as WAN does before its tokenizer."""
    import ftfy

    return " ".join(ftfy.fix_text(prompt).split())
