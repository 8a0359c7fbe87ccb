"""What a training step takes, before it runs: memory and floating-point operations, from sizes alone."""

from ..wan.spec import TEMPORAL_STRIDE, TEXT_TOKENS, WanSpec, latent_frames, pixel_frames
from .mora import MotionSettings

_ALIVE, _ALIVE_PER_FFN = 17.0, 2.2
"""Activations of one block under its checkpoint, in units of tokens x dim: fitted to counts on meta tensors
(1.3B at 1024, 9360 and 20280 tokens, 14B at 9360; within 4 %)."""
_ADAM_BYTES = 16
"""Of a float32 parameter, its gradient and AdamW's two moments."""


def count_activation_bytes(spec: WanSpec, tokens: int, batch: int = 1, value_bytes: int = 2) -> int:
    """Memory of a DiT's activations in a step that checkpoints every block and trains LoRAs."""
    unit = tokens * spec.dim * value_bytes * batch
    return round(unit * (spec.blocks + _ALIVE + _ALIVE_PER_FFN * spec.ffn / spec.dim))


def count_optimizer_bytes(parameters: int) -> int:
    """Memory of trained parameters with all that AdamW keeps."""
    return parameters * _ADAM_BYTES


def count_lora_parameters(spec: WanSpec, names: list[str], rank: int) -> int:
    """Parameters of LoRA pairs on these linears."""
    return sum(rank * sum(spec.linear_shape(name)) for name in names)


def count_step_flops(spec: WanSpec, tokens: int) -> float:
    """Of one sample: forward, forward again for the checkpoints, and the gradient of the activations, which
    takes linears once and attention two and a half times as much, as that forms its weights again.
    """
    per_token = 6 * spec.dim**2 + 2 * spec.dim * spec.ffn
    of_text = 2 * spec.dim**2
    linears = 2 * tokens * per_token + 2 * TEXT_TOKENS * of_text
    attention = 4 * tokens * (tokens + TEXT_TOKENS) * spec.dim
    return spec.blocks * (3.0 * linears + 4.5 * attention)


_PIXELS = 576 * 320


_DECODED_FRAME, _TINY_FRAME, _PAIR = 3.14e12, 0.13e12, 0.1e12
"""Forward and backward, at `_PIXELS`; a pair of frames goes through SEA-RAFT M at half scale."""


_SMALL_STAGES = 0.21
"""Share of the decoder below half of the frame's size, which decodes half of a window's context alone."""


_RECOMPUTED, _TWICE = 1.24, 1.5
"""A decoder whose blocks' insides are computed again, and one that is run again whole."""


def count_alignment_flops(settings: MotionSettings, decode: str, recompute: bool) -> float:
    """Of one sample; `decode` is one of mora.DECODE_MODES but `auto`. 0 where mora_weight is 0."""
    if not settings.mora_weight:
        return 0.0
    frames = float(pixel_frames(latent_frames(settings.frames)))
    pairs, frame = frames - 1, _DECODED_FRAME
    if decode == "tiny":
        frame = _TINY_FRAME
    elif decode == "exact-low-memory":
        frame *= _TWICE
    elif recompute:
        frame *= _RECOMPUTED
    if decode == "windowed":
        shallow = settings.context // 2
        whole = TEMPORAL_STRIDE * (settings.window + settings.context - shallow)
        frames = min(frames, whole + _SMALL_STAGES * TEMPORAL_STRIDE * shallow)
        pairs = min(pairs, TEMPORAL_STRIDE * settings.window)
    return (frames * frame + pairs * _PAIR) * settings.width * settings.height / _PIXELS


def count_projector_parameters(dim: int, feature_dim: int, width: int) -> int:
    """How many the projector of these sizes has."""
    sizes = [dim, width, width, feature_dim]
    return sum((inputs + 1) * outputs for inputs, outputs in zip(sizes, sizes[1:], strict=False))
