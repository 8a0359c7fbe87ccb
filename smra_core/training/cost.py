"""What a training step takes, before it runs: memory and floating-point operations, from sizes alone."""

from ..wan.spec import TEXT_TOKENS, WanSpec

_ALIVE, _ALIVE_PER_FFN = 17.0, 2.2
"""Activations of one block under its checkpoint, in units of tokens x dim: fitted to counts on meta tensors
(1.3B at 1024, 9360 and 20280 tokens, 14B at 9360; within 4 %)."""
_ADAM_BYTES = 16
"""Of a float32 parameter, its gradient and AdamW's two moments."""


def activation_bytes(spec: WanSpec, tokens: int, batch: int = 1, value_bytes: int = 2) -> int:
    """Memory of a DiT's activations in a step that checkpoints every block and trains LoRAs."""
    unit = tokens * spec.dim * value_bytes * batch
    return round(unit * (spec.blocks + _ALIVE + _ALIVE_PER_FFN * spec.ffn / spec.dim))


def optimiser_bytes(parameters: int) -> int:
    """Memory of trained parameters with all that AdamW keeps."""
    return parameters * _ADAM_BYTES


def lora_parameters(spec: WanSpec, names: list[str], rank: int) -> int:
    """Parameters of LoRA pairs on these linears."""
    return sum(rank * sum(spec.linear_shape(name)) for name in names)


def step_flops(spec: WanSpec, tokens: int) -> float:
    """Of one sample: forward, forward again for the checkpoints, and the gradient of the activations, which
    takes linears once and attention two and a half times as much, as that forms its weights again.
    """
    per_token = 6 * spec.dim**2 + 2 * spec.dim * spec.ffn
    of_text = 2 * spec.dim**2
    linears = 2 * tokens * per_token + 2 * TEXT_TOKENS * of_text
    attention = 4 * tokens * (tokens + TEXT_TOKENS) * spec.dim
    return spec.blocks * (3.0 * linears + 4.5 * attention)
