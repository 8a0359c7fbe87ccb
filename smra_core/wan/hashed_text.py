"""The miniature's text encoder: every word is a fixed random vector, made from the word itself."""

import re
import zlib
from functools import lru_cache

import torch
from torch import Tensor

from .spec import TEXT_DIM

TOKENS = 12


class HashedText:
    """Text encoder of the miniature (protocol: wan.interfaces.TextEncoder); the same words give the same
    numbers.
    """

    def encode(self, prompts: list[str]) -> Tensor:
        """`B 12 4096`: one vector a word, zeros after the last. Words past the twelfth are dropped."""
        return torch.stack([_embed_prompt(prompt) for prompt in prompts])


def _embed_prompt(prompt: str) -> Tensor:
    words = re.findall(r"[a-z0-9]+", prompt.lower())[:TOKENS]
    context = torch.zeros(TOKENS, TEXT_DIM)
    for place, word in enumerate(words):
        context[place] = embed_word(word)
    return context


@lru_cache(maxsize=4096)
def embed_word(word: str) -> Tensor:
    """4096 normal numbers; crc32 is the seed because Python's own hash differs between processes."""
    generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
    return torch.randn(TEXT_DIM, generator=generator)
