"""WAN's video decoder one latent at a time, differentiable, with everything it remembers as plain values.

diffusers keeps the frames that its causal convolutions look back on in lists that it overwrites. Here a step
takes what the past left and returns what it leaves, so that a gradient can be followed across steps, cut, or
computed step by step.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cpu_layers import conv3d
from .wan import LATENT_CHANNELS, LATENT_MEAN, LATENT_STD

LOOK_BACK = 2
"""Frames before its own that a causal convolution of three time taps sees."""

Past = tuple[Tensor, ...]
"""For each causal convolution, in order, the last two frames that entered it: `B C 2 H W`."""


class Carry:
    """What a layer's convolutions were left by the past, and what they leave."""

    def __init__(self, before: Past):
        self.before, self.after = list(before), []
        self.first = not before

    def with_past(self, x: Tensor) -> Tensor:
        """`B C T H W` with two frames put in front: those of the past, or black before the first latent."""
        past = black_past(x) if self.first else self.before[len(self.after)]
        joined = torch.cat([past, x], 2)
        # A clone, because a view would keep the whole activation alive.
        self.after.append(joined[:, :, -LOOK_BACK:].clone())
        return joined


def black_past(x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:2], LOOK_BACK, *x.shape[3:])


class Layer(NamedTuple):
    """A part of the decoder whose activations live together."""

    run: Callable[[Tensor, Carry], Tensor]
    carried: int
    """How many convolutions in it look back."""

    def __call__(self, x: Tensor, before: Past) -> tuple[Tensor, ...]:
        """Its output, then what it leaves; with gradients its activations are computed again in backward."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *before)):
            return checkpoint(self._stepped, x, *before, use_reentrant=False, preserve_rng_state=False)
        return self._stepped(x, *before)

    def _stepped(self, x: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        carry = Carry(before)
        return (self.run(x, carry), *carry.after)


class FrozenDecoder:
    """The decoder of a WAN 2.1 VAE; its weights get no gradient, its latents do."""

    def __init__(self, layers: list[Layer], dtype: torch.dtype):
        self.layers, self.dtype = layers, dtype

    @classmethod
    def of(cls, vae: nn.Module) -> "FrozenDecoder":
        """The decoder of diffusers' `AutoencoderKLWan`. ValueError for WAN 2.2's, which is built
        differently.
        """
        config = vae.config
        if config.is_residual or config.patch_size is not None or config.z_dim != LATENT_CHANNELS:
            raise ValueError(
                f"This VAE has {config.z_dim} latent channels and is WAN 2.2's; the method needs WAN 2.1's "
                f"with {LATENT_CHANNELS}. Choose the VAE that came with Wan2.1-T2V."
            )
        return cls(layers_of(vae), next(vae.parameters()).dtype)

    def stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Pixels `B 3 n H W` of one latent after the other, not clamped, nominally in [-1, 1].

        `latents` is `B 16 f h w` in model space; latent k gives the frames wan.frames_of_latent(k).
        """
        past = None
        for latent in latents.split(1, 2):
            pixels, past = self.step(latent, past)
            yield pixels

    def step(self, latent: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Pixels `B 3 n H W` of one latent `B 16 1 h w`, and what it leaves to the next; None starts a
        clip.
        """
        x = unwhitened(latent).to(self.dtype)
        after: list[Tensor] = []
        for layer in self.layers:
            before = () if past is None else past[len(after) : len(after) + layer.carried]
            x, *left = layer(x, before)
            after += left
        return x, tuple(after)


def unwhitened(latents: Tensor) -> Tensor:
    """From model space to what the VAE's decoder takes."""
    mean, std = (latents.new_tensor(values).view(-1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    return latents * std + mean


def layers_of(vae: nn.Module) -> list[Layer]:
    """The decoder's parts in order, cut finely: one part's activations are the peak."""
    # Taken out of the VAE, so that its encoder can be freed.
    decoder, unquantised = vae.decoder, vae.post_quant_conv
    entry = lambda x, carry: causal(decoder.conv_in, causal(unquantised, x, carry), carry)  # noqa: E731
    head = lambda x, carry: causal(decoder.conv_out, F.silu(decoder.norm_out(x)), carry)  # noqa: E731
    layers = [Layer(entry, 1)]
    first, *others = decoder.mid_block.resnets
    layers.append(residual(first))
    for attention, block in zip(decoder.mid_block.attentions, others, strict=True):
        layers += [Layer(lambda x, carry, attend=attention: attend(x), 0), residual(block)]
    for up in decoder.up_blocks:
        layers += [residual(block) for block in up.resnets]
        layers += [upsampling(module) for module in up.upsamplers or ()]
    return [*layers, Layer(head, 1)]


def residual(block: nn.Module) -> Layer:
    def run(x: Tensor, carry: Carry) -> Tensor:
        hidden = causal(block.conv1, F.silu(block.norm1(x)), carry)
        hidden = causal(block.conv2, F.silu(block.norm2(hidden)), carry)
        pointwise = isinstance(block.conv_shortcut, nn.Conv3d)
        return hidden + (causal(block.conv_shortcut, x, carry) if pointwise else x)

    return Layer(run, 2)


def upsampling(module: nn.Module) -> Layer:
    """Twice the size; where time doubles too, the clip's first frame stays alone."""
    in_time = module.mode == "upsample3d"

    def run(x: Tensor, carry: Carry) -> Tensor:
        if in_time and carry.first:
            carry.after.append(black_past(x))  # the first frame does not enter the time convolution
        elif in_time:
            x = rearrange(causal(module.time_conv, x, carry), "b (n c) t h w -> b c (t n) h w", n=2)
        # Not the module's own upsampling, which goes through float32 whatever the dtype.
        frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2, mode="nearest-exact")
        frames = module.resample[1](frames)
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))

    return Layer(run, int(in_time))


def causal(conv: nn.Conv3d, x: Tensor, carry: Carry) -> Tensor:
    """Convolution over the frames so far; `B C T H W` keeps T, H and W."""
    if conv.weight.shape[2] > 1:
        x = carry.with_past(x)
    return conv3d(x, conv.weight, conv.bias, _borders(conv.weight))


def _borders(weight: Tensor) -> tuple[int, int]:
    return weight.shape[3] // 2, weight.shape[4] // 2
