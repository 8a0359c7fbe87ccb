"""Self-attention of diffusers' WAN that rotates positions by one complex product.

diffusers' own rotation takes about ten calls of torch on every second value, and twice as many in the
backward pass. On a CPU that is 30 times slower than one product; on a card each call is a launch.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanAttention


def use_complex_rotation(dit: "WanTransformer3DModel") -> None:
    """Let a DiT make its rotations as complex numbers, and its self-attentions take them as such."""
    make_cos_sin = dit.rope.forward
    dit.rope.forward = lambda latents: make_rotation(*make_cos_sin(latents))
    for block in dit.blocks:
        block.attn1.set_processor(RotarySelfAttention())


def make_rotation(cos: Tensor, sin: Tensor) -> Tensor:
    """Return the rotations `1 L 1 D/2` as complex numbers, of cosines and sines `1 L 1 D` that are the same
    for both values of a pair.
    """
    if cos.dtype not in (torch.float32, torch.float64):
        cos, sin = cos.float(), sin.float()
    return torch.complex(cos[..., ::2].contiguous(), sin[..., ::2].contiguous())


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Return `x` (`B L H D`) with each pair of values, a complex number, multiplied by its rotation.

    It is computed in the rotation's precision and returned in that of `x`.
    """
    pairs = torch.view_as_complex(x.to(rotation.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


class RotarySelfAttention:
    """Attention processor of diffusers for self-attention with rotations (see WanAttnProcessor)."""

    def __call__(
        self,
        attention: "WanAttention",
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Return the attention `B L D` of tokens `B L D` to each other; the names are diffusers'."""
        heads = attention.heads, -1
        query = attention.norm_q(attention.to_q(hidden_states)).unflatten(2, heads)
        key = attention.norm_k(attention.to_k(hidden_states)).unflatten(2, heads)
        value = attention.to_v(hidden_states).unflatten(2, heads)
        query, key = rotate(query, rotary_emb), rotate(key, rotary_emb)
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)))
        return attention.to_out[0](mixed.transpose(1, 2).flatten(2))
