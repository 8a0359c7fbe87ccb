"""UMT5, WAN's text encoder, from one file: ComfyUI's (whose tokenizer lies inside), or WAN's own .pth."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..storage.weight_check import join_names
from ..storage.weight_file import read_weight_file
from ..wan.spec import TEXT_TOKENS
from .checkpoint_kind import prefix_of, text_kind
from .checkpoint_weights import Shapes, check_native, fill_native, rename_to_native, without_quantization

TOKENIZER_KEY = "spiece_model"
"""Bytes of the SentencePiece model that ComfyUI's files carry."""
_PAD, _END = 0, 1
_MOST_LAYERS, _WIDEST, _LARGEST_VOCABULARY = 64, 1 << 15, 1 << 20
_BLOCK = re.compile(r"^blocks\.([0-9]+)\.(.+)$")
_WAN_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    **{f"attn.{role}": f"layer.0.SelfAttention.{role}" for role in "qkvo"},
}
_WAN_TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_LAYER = "encoder.block.0.layer."


class Umt5Text:
    """WAN's text encoder, UMT5-XXL (protocol: wan.interfaces.TextEncoder)."""

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


def to_umt5_name(name: str) -> str:
    """Transformers' name of a weight that WAN's own file calls so; others stay."""
    if name in _WAN_TOP:
        return _WAN_TOP[name]
    match = _BLOCK.match(name)
    path = match and _WAN_BLOCK.get(match[2].removesuffix(".weight"))
    return f"encoder.block.{match[1]}.{path}.weight" if match and path else name


def build_umt5_config(shapes: Shapes, source: str) -> dict[str, Any]:
    """Arguments of transformers' UMT5Config, from the shapes; ValueError when it is not UMT5."""
    weights = without_quantization(shapes)
    table = weights.get("shared.weight", ())
    inner = weights.get(_LAYER + "0.SelfAttention.q.weight", ())
    # Every block of UMT5 has a table of relative positions; T5 has one for all.
    bias = weights.get("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", ())
    wide = weights.get(_LAYER + "1.DenseReluDense.wi_0.weight", ())
    layers = sum(name.endswith(".SelfAttention.relative_attention_bias.weight") for name in weights)
    blocks = len({match[1] for name in weights if (match := re.match(r"encoder\.block\.([0-9]+)\.", name))})
    if not all(len(shape) == 2 for shape in (table, inner, bias, wide)) or layers != blocks:
        kind = text_kind(weights)
        raise ValueError(
            f"{source} is not UMT5: it "
            + (f"looks like {kind}. " if kind else f"has {join_names(sorted(weights))}. ")
            + "Choose umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors, files of "
            "ComfyUI's text_encoders folder."
        )
    config = {
        "vocab_size": table[0],
        "d_model": table[1],
        "d_kv": inner[0] // max(1, bias[1]),
        "d_ff": wide[0],
        "num_heads": bias[1],
        "num_layers": blocks,
        "relative_attention_num_buckets": bias[0],
    }
    limits = {"vocab_size": _LARGEST_VOCABULARY, "num_layers": _MOST_LAYERS}
    for name, value in config.items():
        if not 1 <= value <= limits.get(name, _WIDEST):
            raise ValueError(f"{source}: its {name} is {value}; UMT5's is 1 to {limits.get(name, _WIDEST)}.")
    return config | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def empty_umt5(config: Mapping[str, Any]) -> Any:
    """The encoder of these sizes on the meta device."""
    from accelerate import init_empty_weights
    from transformers import UMT5Config, UMT5EncoderModel

    with init_empty_weights(include_buffers=False):
        return UMT5EncoderModel(UMT5Config(**config))


def _own_name(name: str) -> str:
    return name.replace("encoder.embed_tokens.", "shared.")


def check_umt5(shapes: Shapes, source: str) -> None:
    """ValueError unless a file with these shapes holds the whole of a UMT5 encoder, and nothing else."""
    named = rename_to_native(shapes, to_umt5_name, source, prefix_of(shapes))
    kept = {name: shape for name, shape in named.items() if name not in _APART}
    check_native(empty_umt5(build_umt5_config(kept, source)), _own_name, kept, source)


_APART = {TOKENIZER_KEY, "encoder.embed_tokens.weight"}
"""The tokenizer, and the second name of the embedding that transformers writes at times."""


def load_umt5(path: Path, dtype: torch.dtype, device: torch.device) -> Umt5Text:
    """UMT5 with its tokenizer; ValueError when the file is another model, or no tokenizer is found.

    The tokenizer is the one inside the file or, for files without, `spiece.model` or `tokenizer.json` beside
    it, or in `google/umt5-xxl` beside it, as WAN's own repository has it.
    """
    tensors = read_weight_file(path).tensors
    tokenizer = _tokenizer(tensors.get(TOKENIZER_KEY), path)
    source = path.name
    named = rename_to_native(tensors, to_umt5_name, source, prefix_of(tensors))
    kept = {name: value for name, value in named.items() if name not in _APART}
    model = empty_umt5(build_umt5_config({name: tuple(value.shape) for name, value in kept.items()}, source))
    # Outputs of the feed-forward nets pass what float16 holds.
    precise = ("wo",) if dtype == torch.float16 else ()
    fill_native(model, _own_name, kept, dtype, source, precise)
    return Umt5Text(model.to(device), tokenizer)


class Tokens(NamedTuple):
    """What tokenizers of transformers give: both `B T`, int64."""

    input_ids: Tensor
    attention_mask: Tensor


class SentencePieceTokenizer:
    """A SentencePiece model, called as the tokenizers of transformers are."""

    def __init__(self, model: bytes):
        """ValueError when these bytes are no SentencePiece model."""
        from sentencepiece import SentencePieceProcessor

        try:
            self.processor = SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"The tokenizer is not a SentencePiece model ({str(error)[:120]}).") from error

    def __call__(self, texts: Sequence[str], max_length: int, **_: object) -> Tokens:
        """Ids with the end mark, cut and padded to `max_length`."""
        ids = torch.full((len(texts), max_length), _PAD)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            pieces = [*self.processor.encode(text)[: max_length - 1], _END]
            ids[row, : len(pieces)] = torch.tensor(pieces)
            mask[row, : len(pieces)] = 1
        return Tokens(ids, mask)


def _tokenizer(inside: Tensor | None, path: Path) -> Any:
    if inside is not None:
        try:
            return SentencePieceTokenizer(_bytes(inside))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error} Download the file again.") from error
    folder = tokenizer_folder(path)
    if (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return SentencePieceTokenizer((folder / "spiece.model").read_bytes())


def _bytes(inside: Tensor) -> bytes:
    if inside.dtype not in (torch.uint8, torch.int8):
        raise ValueError(f"Its tokenizer is stored as {inside.dtype}; bytes are needed.")
    return inside.numpy().tobytes()


def tokenizer_folder(path: Path) -> Path:
    """Where the tokenizer of a file without one lies; ValueError when it is nowhere."""
    places = (path.parent / "google" / "umt5-xxl", path.parent / "tokenizer", path.parent)
    for place in places:
        if (place / "spiece.model").is_file() or (place / "tokenizer.json").is_file():
            return place
    raise ValueError(
        f"{path.name} holds no tokenizer, and there is none in {', '.join(map(str, places))}. Give ComfyUI's "
        "umt5_xxl_fp16.safetensors, which has it inside, or put spiece.model beside the file."
    )


def _tidy(prompt: str) -> str:
    """Mend broken encodings and white space, as WAN does before its tokenizer."""
    import ftfy

    return " ".join(ftfy.fix_text(prompt).split())
