"""WAN's denoiser and video codec without ComfyUI, implemented with diffusers' transformer and video VAE."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..decoding.fast_conv3d import with_fast_layers
from ..lora.frozen_linear import FrozenForward, freeze_plain_linear, freeze_stored_linear
from ..wan.block_stream import spread_waiting
from ..wan.condition import DENOISE_MASK, IMAGE_CHANNELS, NO_INPUTS, ExtraInputs
from ..wan.feed_forward import ChunkedForward
from ..wan.host_inputs import HostInputs
from ..wan.interfaces import Prediction
from ..wan.latents import denormalize, normalize
from ..wan.module_names import to_native_linear
from ..wan.recompute import KeptBlocks
from ..wan.spec import PATCH, TIMESTEPS, Role, WanSpec, find_latents, find_spec, parse_linear
from .checkpoint_weights import GROUP, SCALE
from .rotary_attention import use_complex_rotation
from .waiting_blocks import WaitingBlocks

if TYPE_CHECKING:  # diffusers takes six seconds to import, which a command that loads no model should not pay
    from diffusers import AutoencoderKLWan, WanTransformer3DModel


class DiffusersDenoiser:
    """A frozen `WanTransformer3DModel` (protocol: wan.interfaces.Denoiser)."""

    def __init__(
        self,
        dit: "WanTransformer3DModel",
        checkpoint: bool = False,
        device: torch.device | None = None,
        resident: int | None = None,
    ):
        """Move a DiT to a device; without one it stays where it is.

        With `checkpoint`, blocks keep only their inputs and are recomputed in the backward pass. `resident`
        is the number of blocks whose weights are on the device at all times, all if it is None; the others
        wait in host memory until `close`.
        """
        self.dit = dit.eval().requires_grad_(False)
        use_complex_rotation(self.dit)
        self.spec = read_spec(dit.config)
        linears, device = self.linears(), device or next(dit.parameters()).device
        waiting = spread_waiting(self.spec.blocks, self.spec.blocks if resident is None else resident)
        self.waiting = WaitingBlocks(linears, waiting, device)
        dit.to(device)
        for name, linear in linears.items():
            linear.forward = self._freeze(name, linear)
        for block in dit.blocks:
            block.ffn.forward = ChunkedForward(block.ffn.forward, [block.ffn.net[0].proj, block.ffn.net[2]])
        self.kept_blocks = KeptBlocks(whole=0 if checkpoint else self.spec.blocks)
        self._following = {block: number for number, block in enumerate(reversed(dit.blocks))}
        self._host_inputs = HostInputs(device)
        dit.enable_gradient_checkpointing(self._run_block)

    def close(self) -> None:
        """Give back the memory for blocks that wait; the model cannot be used any more if there are any."""
        self.waiting.close()
        self._host_inputs.close()

    def _freeze(self, name: str, linear: nn.Module) -> FrozenForward:
        ends_block = parse_linear(name).role is Role.FFN_2
        take, scale = self.waiting.find_weight(name), getattr(linear, SCALE, None)
        if take is None and linear.weight.dtype.itemsize > 1:
            return freeze_plain_linear(linear, ends_block)
        if scale is not None and not scale.ndim:
            scale = scale.item()
        group = getattr(linear, GROUP, 0)
        return freeze_stored_linear(linear, take or (lambda: linear.weight), scale, group, ends_block)

    def linears(self) -> dict[str, nn.Module]:
        """Return the linears of all blocks by native name."""
        named = ((to_native_linear(name), module) for name, module in self.dit.named_modules())
        return {name: module for name, module in named if name is not None}

    def _run_block(self, block: nn.Module, *args) -> Tensor:
        return self.kept_blocks.run(self._following[block], self._host_inputs, block, *args)

    def velocity(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        context: Tensor,
        token_block: int | None = None,
        extra: ExtraInputs = NO_INPUTS,
    ) -> Prediction:
        """See wan.interfaces.Denoiser. The velocity is returned in the dtype of `noisy_latents`.

        Raises ValueError for a `token_block` that the model does not have.
        """
        dtype = self.dit.patch_embedding.weight.dtype
        latents = noisy_latents.to(dtype)
        if IMAGE_CHANNELS in extra:
            latents = torch.cat([latents, extra[IMAGE_CHANNELS].to(latents)], 1)
        with self._collect_tokens(token_block) as tokens:
            timestep = make_timesteps(sigma, extra)
            velocity = self.dit(latents, timestep, context.to(dtype), return_dict=False)[0]
        return Prediction(velocity.to(noisy_latents.dtype), tokens[0] if tokens else None)

    @contextmanager
    def _collect_tokens(self, token_block: int | None) -> Iterator[list[Tensor]]:
        """Collect the tokens that leave a block, at the input of the next module: outside its checkpoint."""
        tokens: list[Tensor] = []
        if token_block is None:
            yield tokens
            return
        if not 0 <= token_block < self.spec.blocks:
            raise ValueError(
                f"There is no block {token_block} to take tokens from; this model has blocks 0 to "
                f"{self.spec.blocks - 1}. Choose one of these."
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


def make_timesteps(sigma: Tensor, extra: ExtraInputs) -> Tensor:
    """Return the timesteps of noise levels `B`: one a sample, or `B L` one a token where a mask
    (condition.DENOISE_MASK) says which latents are given.
    """
    timestep = sigma * TIMESTEPS
    if DENOISE_MASK not in extra:
        return timestep
    tokens = F.avg_pool3d(extra[DENOISE_MASK].to(timestep), PATCH)
    return timestep[:, None] * tokens.flatten(1)


def read_spec(config: Mapping[str, Any]) -> WanSpec:
    """Return the sizes of a DiT, given the arguments of diffusers' WanTransformer3DModel."""
    heads = config["num_attention_heads"]
    sizes = config["num_layers"], heads * config["attention_head_dim"], config["ffn_dim"], heads
    spec = find_spec(*sizes, find_latents(config["out_channels"]))
    channels = config["in_channels"]
    return spec if channels == spec.latents.channels else spec.as_variant("image to video", channels)


class DiffusersCodec:
    """A frozen `AutoencoderKLWan` in model space (protocol: wan.interfaces.VideoCodec)."""

    def __init__(self, vae: "AutoencoderKLWan"):
        self.vae = with_fast_layers(vae.eval().requires_grad_(False))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See wan.interfaces.VideoCodec."""
        return normalize(self.vae.encode(self._as_weights(pixels)).latent_dist.mean)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See wan.interfaces.VideoCodec."""
        return self.vae.decode(denormalize(self._as_weights(latents))).sample

    def _as_weights(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device and in the dtype of the VAE's weights."""
        return tensor.to(self.vae.post_quant_conv.weight)
