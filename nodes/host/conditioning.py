"""Read text contexts, and what stands beside them, from a CONDITIONING: one for each picture, or for all."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...smra_core.lora.metadata import name_unknown_caption
from ...smra_core.wan.spec import TEXT_DIM
from .inference_tensors import as_normal_tensor


def match_captions(positive, count: int, captions: str = "") -> tuple[list[str], dict[str, Tensor]]:
    """Return the caption of each of `count` samples, and the context `T 4096` of each caption.

    A conditioning holds one prompt, or as many as there are samples, in their order. `captions` names them,
    one a line. Raises ValueError when the numbers disagree or when the text encoder was not WAN's.
    """
    prompts = _pad_to_one_length(
        [_read_context(row) for tensor, *_ in positive for row in as_normal_tensor(tensor)]
    )
    if len(prompts) not in (1, count):
        raise ValueError(
            f"The conditioning holds {len(prompts)} prompts for {count} pictures or clips. Give one for all, "
            "or one for each (SMRA Load Subject Folder and SMRA Load Motion Clip make them)."
        )
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    names = [_choose_name(lines, index) for index in range(len(prompts))]
    contexts: dict[str, Tensor] = {}
    for index, prompt in enumerate(prompts):
        if not contexts.setdefault(names[index], prompt).equal(prompt):
            names[index] = f"{names[index]} ({index + 1})"
            contexts[names[index]] = prompt
    return names * (count if len(names) == 1 else 1), contexts


def match_options(positive, count: int) -> list[dict[str, Any]]:
    """Return the values beside the prompt (images, masks, CLIP features) for each of `count` samples.

    `match_captions` has checked the numbers.
    """
    options = [values for tensor, values, *_ in positive for _ in tensor]
    return options * (count if len(options) == 1 else 1)


def _choose_name(lines: list[str], index: int) -> str:
    if index < len(lines):
        return lines[index]
    return lines[0] if len(lines) == 1 else name_unknown_caption(index)


def _read_context(row: Tensor) -> Tensor:
    """Return a context `T 4096` as a sampler would take it; WAN's own encoder has padded it to 512 tokens."""
    if row.ndim != 2 or row.shape[1] != TEXT_DIM:
        raise ValueError(
            f"This conditioning is {tuple(row.shape)} for one prompt; WAN needs (T, {TEXT_DIM}). Encode the "
            "prompt with WAN's own text encoder (CLIP loader of type wan, umt5_xxl)."
        )
    return row.float().cpu()


def _pad_to_one_length(prompts: list[Tensor]) -> list[Tensor]:
    """Pad the shorter contexts with zeros at the end, so that one batch can hold all."""
    longest = max(map(len, prompts), default=0)
    return [F.pad(prompt, (0, 0, 0, longest - len(prompt))) for prompt in prompts]
