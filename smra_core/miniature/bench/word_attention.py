"""Attention of a DiT's tokens to some words of the caption (MotionBooth's subject token cross-attention).

MotionBooth (Wu et al., 2024, section "Subject token cross-attention loss") asks that the tokens of the
subject attend to the subject's words, and the others do not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...wan.hashed_text import embed_word
from ...wan.spec import PATCH


class WordAttention:
    """Queries and keys of every block's cross-attention, kept while the DiT runs inside of `collect`."""

    def __init__(self, blocks: Sequence[nn.Module]):
        """Take the blocks of a WanTransformer3DModel of diffusers."""
        self.attentions = [block.attn2 for block in blocks]
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep what the blocks compute inside of the context, and forget what was kept before."""
        self.queries, self.keys = [], []
        handles = [
            norm.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
            for attention in self.attentions
            for norm, kept in ((attention.norm_q, self.queries), (attention.norm_k, self.keys))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def measure(self, chosen: Tensor) -> Tensor:
        """Return the share `B L` of each token's attention, 0 to 1, that goes to the chosen words `B T` of
        the caption (1 or 0), averaged over heads and blocks.
        """
        heads = self.attentions[0].heads
        shares = [
            measure_share(query, key, chosen, heads)
            for query, key in zip(self.queries, self.keys, strict=True)
        ]
        return torch.stack(shares).mean(0)


def measure_share(query: Tensor, key: Tensor, chosen: Tensor, heads: int) -> Tensor:
    """Return the share `B L` of the attention of queries `B L D` over keys `B T D` that the chosen keys
    `B T` (1 or 0) get, averaged over heads.
    """
    query, key = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key))
    logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    return (logits.softmax(-1) * chosen[:, None, None]).sum(-1).mean(1)


def find_words(context: Tensor, words: Sequence[str]) -> Tensor:
    """Return a mask `B T` of the places in the miniature's text context `B T 4096` that hold these words."""
    embedded = torch.stack([embed_word(word) for word in words]).to(context)
    return (context[:, :, None] == embedded).all(-1).any(-1).to(context.dtype)


def compute_word_loss(share: Tensor, mask_latent: Tensor) -> Tensor:
    """Return MotionBooth's cross-attention loss `B`: the binary cross-entropy between the attention to the
    subject's words, `B L`, and the subject's part of each token, of a mask `B 1 f h w` of latents.
    """
    wanted = F.avg_pool3d(mask_latent, PATCH).flatten(1)
    return F.binary_cross_entropy(share.clamp(0, 1), wanted, reduction="none").mean(1)
