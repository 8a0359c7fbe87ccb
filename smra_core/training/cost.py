"""Memory and floating-point operations of a training step, estimated from sizes alone before it runs."""

import math

from ..decoding.windows import split_into_windows
from ..wan.feed_forward import CHUNK_TOKENS
from ..wan.spec import TEMPORAL_STRIDE, TEXT_TOKENS, LatentSpace, WanSpec, latent_frames, pixel_frames
from .decoder_sizes import DECODERS, MEASURED_PIXELS
from .motion_settings import MotionSettings

_BLOCK_TENSORS, _FFN_TENSORS, _TEXT_TENSORS = 27.5, 2.2, 5.0
"""Activations of one recomputed DiT block in units of (tokens x dim) values, more of them per unit of
ffn / dim where the feed-forward net is not in chunks, and those of the text. Fitted to counts on meta tensors
for diffusers' DiT (tests/core/training/test_cost.py: within 5 %); ComfyUI's takes 3 to 5 units less.
"""
_SAMPLED_TENSORS, _SAMPLED_FFN_TENSORS = 7.1, 1.55
"""The same of an evaluation without gradients, with LoRAs on all linears."""
_TRAINED_BYTES = 16
"""Bytes of a trained float32 value, its gradient and AdamW's two moments."""

_FLOW_PAIR = 0.1e12
"""FLOPs, forward and backward, of a pair of frames in SEA-RAFT M, which works at half of their size."""
_RECOMPUTED, _DECODED_TWICE = 1.24, 1.5
"""Factors of the decoder's FLOPs where half of each block is recomputed in the backward pass, and where all
latents are decoded a second time.
"""


def count_activation_bytes(spec: WanSpec, tokens: int, batch: int = 1, value_bytes: int = 2) -> int:
    """Return the bytes of a DiT's activations in a step that checkpoints every block and trains LoRAs.

    `tokens` are those of one sample; a value of the activations takes `value_bytes`.
    """
    unit = count_input_bytes(spec, tokens, batch, value_bytes)
    return round(unit * (spec.blocks + count_block_tensors(spec, tokens, batch)))


def count_input_bytes(spec: WanSpec, tokens: int, batch: int = 1, value_bytes: int = 2) -> int:
    """Return the bytes of the input that a block keeps until it is recomputed."""
    return tokens * spec.dim * value_bytes * batch


def count_block_tensors(spec: WanSpec, tokens: int, batch: int = 1) -> float:
    """Return the size of a recomputed block's activations at their peak, in units of a block's input."""
    chunks = math.ceil(tokens * batch / CHUNK_TOKENS)
    text = _TEXT_TENSORS * TEXT_TOKENS / tokens
    return _BLOCK_TENSORS + _FFN_TENSORS * spec.ffn / spec.dim / chunks + text


def count_sampling_bytes(spec: WanSpec, tokens: int, batch: int = 1, value_bytes: int = 2) -> int:
    """Return the bytes of a DiT's activations in one evaluation without gradients, with LoRAs."""
    unit = count_input_bytes(spec, tokens, batch, value_bytes)
    return round(unit * (_SAMPLED_TENSORS + _SAMPLED_FFN_TENSORS * spec.ffn / spec.dim))


def count_optimizer_bytes(parameters: int) -> int:
    """Return the bytes of trained parameters, their gradients and AdamW's state."""
    return parameters * _TRAINED_BYTES


def count_lora_parameters(spec: WanSpec, names: list[str], rank: int) -> int:
    """Return the number of parameters of LoRA pairs on the linears of these names."""
    return sum(rank * sum(spec.linear_shape(name)) for name in names)


def count_projector_parameters(dim: int, feature_dim: int, width: int) -> int:
    """Return the number of parameters of SuRA's projector with these sizes (see sura.make_projector)."""
    sizes = [dim, width, width, feature_dim]
    return sum((inputs + 1) * outputs for inputs, outputs in zip(sizes, sizes[1:], strict=False))


def count_forward_flops(spec: WanSpec, tokens: int) -> float:
    """Return the FLOPs of one sample in the DiT without a backward pass."""
    linears, attention = _count_block_flops(spec, tokens)
    return spec.blocks * (linears + attention)


def count_step_flops(spec: WanSpec, tokens: int) -> float:
    """Return the FLOPs of one sample in the DiT: forward, recomputed forward, and backward with respect to
    activations.

    The backward pass of a linear costs as much as its forward pass, that of attention two and a half times as
    much, because it computes the attention weights again.
    """
    linears, attention = _count_block_flops(spec, tokens)
    return spec.blocks * (3.0 * linears + 4.5 * attention)


def _count_block_flops(spec: WanSpec, tokens: int) -> tuple[float, float]:
    """Return the FLOPs of the linears and of the attention of one block, forward."""
    token_linears = 6 * spec.dim**2 + 2 * spec.dim * spec.ffn
    text_linears = 2 * spec.dim**2
    linears = 2 * tokens * token_linears + 2 * TEXT_TOKENS * text_linears
    return linears, 4 * tokens * (tokens + TEXT_TOKENS) * spec.dim


def count_alignment_flops(
    settings: MotionSettings, decode: str, recompute: bool, latents: LatentSpace
) -> float:
    """Return the FLOPs of MoRA for one sample: decoder and flow net, forward and backward.

    `decode` is one of mora.DECODE_MODES but `auto`. The result is 0 if mora_weight is 0.
    """
    if not settings.mora_weight:
        return 0.0
    frames = float(pixel_frames(latent_frames(settings.frames)))
    decoder = DECODERS[latents]
    pairs, frame_flops = frames - 1, decoder.frame_flops
    if decode == "tiny":
        frame_flops = decoder.tiny_flops
    elif decode == "exact-low-memory":
        frame_flops *= _DECODED_TWICE
    elif recompute:
        frame_flops *= _RECOMPUTED
    if decode == "windowed":
        small_only = settings.context // 2  # latents of a window's context that only the small stages see
        whole_frames = TEMPORAL_STRIDE * (settings.window + settings.context - small_only)
        frames = min(frames, whole_frames + decoder.small_share * TEMPORAL_STRIDE * small_only)
        pairs = min(pairs, TEMPORAL_STRIDE * settings.window)
        all_windows = len(split_into_windows(latent_frames(settings.frames), settings.window))
        compared = min(settings.windows_per_step, all_windows)
        frames, pairs = compared * frames, compared * pairs
    flops = frames * frame_flops + pairs * _FLOW_PAIR
    return flops * settings.width * settings.height / MEASURED_PIXELS
