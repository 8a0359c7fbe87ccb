"""WAN's text encoder UMT5 from one file: ComfyUI's, which holds the tokenizer too, or WAN's own .pth."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..storage.weight_check import join_names
from ..storage.weight_file import read_weight_file
from ..wan.spec import TEXT_TOKENS
from .checkpoint_kind import find_prefix, guess_text_kind
from .checkpoint_weights import Shapes, check_native, fill_native, rename_to_native, without_quantization

TOKENIZER_KEY = "spiece_model"
"""Name of the entry in ComfyUI's files that holds the bytes of the SentencePiece model."""
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

    def __init__(self, encoder: nn.Module, tokenizer: Any):
        self.encoder, self.tokenizer = encoder.eval().requires_grad_(False), tokenizer

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Return the context `B 512 4096` of captions.

        Captions of more than 512 tokens are cut. Positions after the end are zero, as in WAN's training.
        """
        tokens = self.tokenizer(
            [_tidy_text(prompt) for prompt in prompts],
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
    """Return transformers' name of a weight, given its name in WAN's own file; other names are kept."""
    if name in _WAN_TOP:
        return _WAN_TOP[name]
    match = _BLOCK.match(name)
    path = match and _WAN_BLOCK.get(match[2].removesuffix(".weight"))
    return f"encoder.block.{match[1]}.{path}.weight" if match and path else name


def build_umt5_config(shapes: Shapes, source: str) -> dict[str, Any]:
    """Return the arguments of transformers' UMT5Config for these shapes; ValueError unless UMT5 has them."""
    weights = without_quantization(shapes)
    table = weights.get("shared.weight", ())
    query = weights.get(_LAYER + "0.SelfAttention.q.weight", ())
    # Every block of UMT5 has a table of relative positions; T5 has one for all.
    bias = weights.get("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", ())
    wi_0 = weights.get(_LAYER + "1.DenseReluDense.wi_0.weight", ())
    layers = sum(name.endswith(".SelfAttention.relative_attention_bias.weight") for name in weights)
    blocks = len({match[1] for name in weights if (match := re.match(r"encoder\.block\.([0-9]+)\.", name))})
    if not all(len(shape) == 2 for shape in (table, query, bias, wi_0)) or layers != blocks:
        kind = guess_text_kind(weights)
        raise ValueError(
            f"{source} is not UMT5: it "
            + (f"looks like {kind}. " if kind else f"has {join_names(sorted(weights))}. ")
            + "Choose umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors, files of "
            "ComfyUI's text_encoders folder."
        )
    config = {
        "vocab_size": table[0],
        "d_model": table[1],
        "d_kv": query[0] // max(1, bias[1]),
        "d_ff": wi_0[0],
        "num_heads": bias[1],
        "num_layers": blocks,
        "relative_attention_num_buckets": bias[0],
    }
    limits = {"vocab_size": _LARGEST_VOCABULARY, "num_layers": _MOST_LAYERS}
    for name, value in config.items():
        if not 1 <= value <= limits.get(name, _WIDEST):
            raise ValueError(
                f"{source}: its {name} is {value}; UMT5's is 1 to {limits.get(name, _WIDEST)}. The file is "
                "damaged, or not UMT5: download it again."
            )
    return config | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def build_empty_umt5(config: Mapping[str, Any]) -> Any:
    """Build the encoder on the meta device, from the arguments of transformers' UMT5Config."""
    from accelerate import init_empty_weights
    from transformers import UMT5Config, UMT5EncoderModel

    with init_empty_weights(include_buffers=False):
        return UMT5EncoderModel(UMT5Config(**config))


def _find_file_name(name: str) -> str:
    return name.replace("encoder.embed_tokens.", "shared.")


def check_umt5(shapes: Shapes, source: str) -> None:
    """Raise ValueError unless a file with these shapes holds a whole UMT5 encoder and nothing else."""
    named = rename_to_native(shapes, to_umt5_name, source, find_prefix(shapes))
    weights = {name: shape for name, shape in named.items() if name not in _NOT_WEIGHTS}
    check_native(build_empty_umt5(build_umt5_config(weights, source)), _find_file_name, weights, source)


_NOT_WEIGHTS = {TOKENIZER_KEY, "encoder.embed_tokens.weight"}
"""Entries that are not loaded: the tokenizer, and a second name of the embedding that transformers may write.
"""


def load_umt5(path: Path, dtype: torch.dtype, device: torch.device) -> Umt5Text:
    """Load UMT5 with its tokenizer; ValueError when the file is another model, or no tokenizer is found.

    The tokenizer is taken from the file. If the file has none, it is `spiece.model` or `tokenizer.json` in
    the file's folder, or in `google/umt5-xxl` or `tokenizer` beside it (WAN's own repository has the former).
    """
    tensors = read_weight_file(path).tensors
    tokenizer = _load_tokenizer(tensors.get(TOKENIZER_KEY), path)
    source = path.name
    named = rename_to_native(tensors, to_umt5_name, source, find_prefix(tensors))
    weights = {name: value for name, value in named.items() if name not in _NOT_WEIGHTS}
    model = build_empty_umt5(
        build_umt5_config({name: tuple(value.shape) for name, value in weights.items()}, source)
    )
    # Outputs of the feed-forward nets exceed the range of float16.
    precise = ("wo",) if dtype == torch.float16 else ()
    fill_native(model, _find_file_name, weights, dtype, source, precise)
    return Umt5Text(model.to(device), tokenizer)


class Tokens(NamedTuple):
    """The result of a tokenizer, as transformers' tokenizers return it: both `B T`, int64."""

    input_ids: Tensor
    attention_mask: Tensor


class SentencePieceTokenizer:
    """A SentencePiece model that is called like the tokenizers of transformers."""

    def __init__(self, model: bytes):
        """Parse the bytes of a SentencePiece model; ValueError when they are none."""
        from sentencepiece import SentencePieceProcessor

        try:
            self.processor = SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"The tokenizer is not a SentencePiece model ({str(error)[:120]}).") from error

    def __call__(self, texts: Sequence[str], max_length: int, **_: object) -> Tokens:
        """Return the ids with an end mark, cut or padded to `max_length`."""
        ids = torch.full((len(texts), max_length), _PAD)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            pieces = [*self.processor.encode(text)[: max_length - 1], _END]
            ids[row, : len(pieces)] = torch.tensor(pieces)
            mask[row, : len(pieces)] = 1
        return Tokens(ids, mask)


def _load_tokenizer(inside: Tensor | None, path: Path) -> Any:
    if inside is not None:
        try:
            return SentencePieceTokenizer(_read_bytes(inside))
        except ValueError as error:
            raise ValueError(f"{path.name}: {error} Download the file again.") from error
    folder = find_tokenizer_folder(path)
    if (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return SentencePieceTokenizer((folder / "spiece.model").read_bytes())


def _read_bytes(inside: Tensor) -> bytes:
    if inside.dtype not in (torch.uint8, torch.int8):
        raise ValueError(f"Its tokenizer is stored as {inside.dtype}; bytes are needed.")
    return inside.numpy().tobytes()


def find_tokenizer_folder(path: Path) -> Path:
    """Find the folder with the tokenizer of a file that holds none; ValueError when there is none."""
    places = (path.parent / "google" / "umt5-xxl", path.parent / "tokenizer", path.parent)
    for place in places:
        if (place / "spiece.model").is_file() or (place / "tokenizer.json").is_file():
            return place
    raise ValueError(
        f"{path.name} holds no tokenizer, and there is none in {', '.join(map(str, places))}. Give ComfyUI's "
        "umt5_xxl_fp16.safetensors, which has it inside, or put spiece.model beside the file."
    )


def _tidy_text(prompt: str) -> str:
    """Repair broken encodings and collapse white space, as WAN does before its tokenizer."""
    import ftfy

    return " ".join(ftfy.fix_text(prompt).split())
