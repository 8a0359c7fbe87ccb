"""Models small enough for finite differences in float64, with the real interfaces and the real names of
linears.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from smra_core.lora.adapter import init_lora
from smra_core.lora.plan import ALL_LAYERS
from smra_core.wan.condition import DENOISE_MASK, IMAGE_CHANNELS, NO_INPUTS
from smra_core.wan.interfaces import Prediction
from smra_core.wan.spec import WanSpec

TEXT = 6
"""Width of the toy's text context."""


class ToyDenoiser(nn.Module):
    """Blocks of self-attention, cross-attention and a feed-forward net over 1x2x2 tokens; frozen.

    It takes `channels`, of which those above 16 are image channels.
    """

    def __init__(self, blocks=2, dim=8, ffn=12, channels=16, text=TEXT):
        super().__init__()
        self.spec = WanSpec("toy", blocks, dim, ffn, heads=1)
        torch.manual_seed(3)
        self.embed, self.head = nn.Linear(channels * 4, dim), nn.Linear(dim, 16 * 4)
        self.text, self.time = nn.Linear(text, dim), nn.Linear(1, dim)
        shapes = {name: self.spec.linear_shape(name) for name in self.spec.linear_names()}
        self.named = nn.ModuleDict(
            {name.replace(".", "/"): nn.Linear(inputs, outputs) for name, (outputs, inputs) in shapes.items()}
        )
        self.requires_grad_(False)

    def close(self):
        """Nothing is held outside of the module."""

    def linears(self):
        return {name.replace("/", "."): module for name, module in self.named.items()}

    def attention(self, kind, x, context):
        q, k, v, o = (self.named[f"{kind}/{role}"] for role in "qkvo")
        return o(F.softmax(q(x) @ k(context).mT, -1) @ v(context))

    def block(self, index, x, context):
        x = x + self.attention(f"blocks/{index}/self_attn", x, x)
        x = x + self.attention(f"blocks/{index}/cross_attn", x, context)
        inner = self.named[f"blocks/{index}/ffn/0"](x)
        return x + self.named[f"blocks/{index}/ffn/2"](F.gelu(inner))

    def velocity(self, noisy_latents, sigma, context, token_block=None, extra=NO_INPUTS):
        f, h, w = noisy_latents.shape[-3:]
        if IMAGE_CHANNELS in extra:
            noisy_latents = torch.cat([noisy_latents, extra[IMAGE_CHANNELS].to(noisy_latents)], 1)
        x = rearrange(noisy_latents, "b c f (h p) (w q) -> b (f h w) (c p q)", p=2, q=2)
        level = sigma.to(x.dtype)[:, None]
        if DENOISE_MASK in extra:
            level = level * F.avg_pool3d(extra[DENOISE_MASK], (1, 2, 2)).flatten(1)
        x = self.embed(x) + self.time(level[..., None])
        context, tokens = self.text(context.to(x.dtype)), None
        for index in range(self.spec.blocks):
            x = self.block(index, x, context)
            tokens = x if index == token_block else tokens
        shape = dict(f=f, h=h // 2, w=w // 2, p=2, q=2)
        velocity = rearrange(self.head(x), "b (f h w) (c p q) -> b c f (h p) (w q)", **shape)
        return Prediction(velocity, tokens)


class ExponentialField:
    """A model without linears, whose field dx/dsigma = x ends at x(0) = x(1) / e."""

    def linears(self):
        return {}

    def velocity(self, noisy, sigma, context, token_block=None, extra=NO_INPUTS):
        return Prediction(noisy, None)


def make_contexts():
    """Return the text contexts of a prompt and of a negative prompt, `1 3 TEXT` each."""
    torch.manual_seed(0)
    return torch.randn(1, 3, TEXT), torch.randn(1, 3, TEXT)


def smooth_flow(frames):
    """A stand-in flow net: differentiable everywhere, each pair by itself, not linear in either frame."""
    before, after = F.avg_pool2d(frames[:-1], 3, 1, 1), frames[1:]
    return torch.stack(
        [torch.tanh(before[:, 0] * after[:, 1] / 1e4), torch.sin(after[:, 2] / 40 + before[:, 1] / 90)], 1
    )


def squared(flow, reference, weight_px=1.0):
    """The simplest flow loss: the mean squared difference, each pixel times its weight."""
    return (weight_px * (flow - reference) ** 2).mean()


def random_lora(spec, plan=ALL_LAYERS, rank=3, scale=1.0, std=1.0, dtype=torch.float32):
    """A LoRA off its start: B is random, too, so that it changes something and A has a gradient."""
    generator = torch.Generator().manual_seed(1)
    lora = init_lora(spec, plan, rank, generator)
    for pair in lora.values():
        pair.b.data.normal_(std=std, generator=generator)
        pair.to(dtype).scale = scale
    return lora


def finite_difference(function, parameter, direction, step=1e-6):
    """Central difference of a scalar function of one parameter along a direction."""
    start = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(start + step * direction)
        above = function().item()
        parameter.copy_(start - step * direction)
        below = function().item()
        parameter.copy_(start)
    return (above - below) / (2 * step)
