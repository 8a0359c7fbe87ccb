"""Account of a LoRA file in words: how much of it is used, and what the rest is, by kind."""

import re
from collections import defaultdict
from collections.abc import Iterable

from .dialects import LONGEST_KEY, find_other_blocks, find_unknown_prefix

_TEXT_ENCODER = re.compile(
    r"^(?:text_encoders?\d?[._]|lora_te\d?_|te\d?[._]|cond_stage_model\.)|text_model[._]"
)
_IMAGE_INPUTS = "the image inputs of image-to-video models (k_img, v_img)"
_KINDS = (
    (re.compile(r"projector"), "projectors of the training"),
    (
        re.compile(r"[kv]_img|img_emb|add_[kv]_proj|norm_added|image_embedder"),
        _IMAGE_INPUTS,
    ),
    (re.compile(r"\.diff_m$|modulation|scale_shift_table"), "modulations"),
    (re.compile(r"norm"), "norms"),
    (re.compile(r"\.diff_b$|\.bias$|\.bias_diff$"), "biases"),
    (
        re.compile(r"(?:^|[._])(?:head|proj_out)(?:[._]|$)|embedding|embedder|time_proj"),
        "the head and the embeddings",
    ),
    (re.compile(r"\.diff$"), "whole weight changes (.diff)"),
    (re.compile(r"\.weight$"), "whole weights, which are no LoRA"),
)
"""Kinds of tensors that are not used, by what their names hold; the first that fits counts."""
_IN_ALL_LAYERS = (_IMAGE_INPUTS, "norms", "biases", "the head and the embeddings")
UNKNOWN_PREFIX = "WAN blocks under the unknown prefix"
_UNKNOWN = "unknown names"
_SHOWN = 120
"""Number of letters of a name that are shown."""


def name_unused_kind(key: str) -> str:
    """Return the kind of a tensor of a LoRA file that is not used, for example `norms`."""
    if len(key) > LONGEST_KEY:
        return _UNKNOWN
    if _TEXT_ENCODER.search(key):
        return "a text encoder"
    if blocks := find_other_blocks(key):
        return f"other blocks than WAN's own ({blocks[:_SHOWN]})"
    if (prefix := find_unknown_prefix(key)) is not None:
        return f"{UNKNOWN_PREFIX} {prefix[:_SHOWN]!r}"
    # Factors of a module are of the module's kind: `head.head.lora_A.weight` is no whole weight.
    module = re.sub(r"\.(?:lora_\w+|lora|alpha)(?:\.\w+)*?(?=\.bias$|$)", "", key)
    return next((kind for pattern, kind in _KINDS if pattern.search(module)), _UNKNOWN)


def describe_use(used: int, linears: int, unused: Iterable[tuple[str, str]], others: int = 0) -> str:
    """Return a sentence on how many tensors of a LoRA file are used, and what the others are.

    `used` is the number of used tensors, `linears` that of the blocks' linears that they change and `others`
    that of other layers; `unused` holds the kind and the name of each of the other tensors. Every kind is
    given with its count and an example.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    for kind, key in unused:
        by_kind[kind].append(key)
    total = used + sum(map(len, by_kind.values()))
    changed = f"for {linears} {'linear' if linears == 1 else 'linears'} of WAN's blocks"
    if others:
        changed += f" and {others} other {'layer' if others == 1 else 'layers'}"
    if not by_kind:
        return f"All {total} tensors are used, {changed}."
    parts = [
        f"{kind}: {len(keys)}, such as {keys[0][:_SHOWN]}"
        for kind, keys in sorted(by_kind.items(), key=lambda item: -len(item[1]))
    ]
    hint = ""
    if not others and not by_kind.keys().isdisjoint(_IN_ALL_LAYERS):
        hint = " With all layers chosen, the Sparse LoRA Loader uses what of them the model has layers for."
    return f"{used} of {total} tensors are used, {changed}. Not used: {'; '.join(parts)}.{hint}"
