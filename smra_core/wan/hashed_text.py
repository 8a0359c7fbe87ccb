"""Text encoder of the miniature: every word is a fixed random vector computed from it."""

import re
import zlib
from functools import lru_cache

import torch
from torch import Tensor

from .spec import TEXT_DIM

TOKENS = 12
"""Number of text tokens; the miniature's captions are short."""


class HashedText:
    """Text encoder of the miniature (protocol: wan.interfaces.TextEncoder).

    The same words always give the same numbers.
    """

    def encode(self, prompts: list[str]) -> Tensor:
        """Return `B 12 4096`: one vector per word, then zeros. Words after the twelfth are dropped."""
        return torch.stack([_embed_prompt(prompt) for prompt in prompts])


def _embed_prompt(prompt: str) -> Tensor:
    words = re.findall(r"[a-z0-9]+", prompt.lower())[:TOKENS]
    context = torch.zeros(TOKENS, TEXT_DIM)
    for position, word in enumerate(words):
        context[position] = embed_word(word)
    return context


@lru_cache(maxsize=4096)
def embed_word(word: str) -> Tensor:
    """Return 4096 normally distributed numbers for a word.

    The seed is the word's crc32, because Python's own hash differs between processes.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
    return torch.randn(TEXT_DIM, generator=generator)
