"""Memory of a motion step's activations for each decode mode, estimated before it runs.

The estimate adds up the large tensors that each part keeps, from their sizes alone;
`python -m tests.benchmarks.motion_step` compares it with the sizes counted on the meta device.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from ..encoders.sea_raft import PAIRS_PER_CHUNK
from ..encoders.sea_raft_config import SEA_RAFT_M
from ..wan.spec import TEMPORAL_STRIDE, LatentSpace, WanSpec, latent_frames, pixel_frames
from .cost import count_block_tensors, count_input_bytes
from .decoder_sizes import DECODERS, TINY_STAGES, DecoderSizes
from .mora import LATENTS_AT_ONCE
from .motion_settings import MotionSettings

_HALF, _FLOAT = 2, 4
"""Bytes of a value in half precision, and in float32."""
_AROUND_BLOCKS = 3
"""Size of what stays in memory around the blocks, in units of (tokens x dim) tensors in half precision."""
_LATENT_COPIES = 12
"""Number of tensors of the latents' size, in float32, that a step keeps."""
_FLOW_PIXEL = 4600
"""Bytes that SEA-RAFT M keeps for each pixel of a pair at its working size (0.21 GB a pair at half of
576x320).
"""
_HIDDEN_FRAMES, _RECOMPUTED_FRAMES = 34, 5
"""Memory inside of the last block's backward pass, in units of a frame of the last stage. Of a few
frames and the two before, the gradients of two convolutions and their norms are 3 x 6 + 4 x 4; recomputing
takes 5 more.
"""


@dataclass(frozen=True)
class DecodeChoice:
    """Choice of the way to decode in a motion step."""

    decode: str
    """One of mora.DECODE_MODES."""
    recompute: bool
    """Whether half of each decoder block is recomputed in the backward pass."""
    bytes: float
    """Peak of the step's activations in bytes; 0 if nothing is decoded."""
    tiny_file: Path | None = None
    """File of the tiny decoder if it is the one that decodes, otherwise None."""


def estimate(
    settings: MotionSettings, decode: str, recompute: bool, spec: WanSpec, tiny_file: Path | None = None
) -> DecodeChoice:
    """Return the choice of this mode, with the peak bytes of a motion step's activations.

    They are estimated in half precision, for one sample a step, with every DiT block checkpointed.
    """
    size = settings.frames, settings.width, settings.height
    tokens = spec.latents.count_tokens(*size)
    token_bytes = count_input_bytes(spec, tokens)
    latent_bytes = math.prod(spec.latents.latent_shape(*size)) * _FLOAT
    checkpoints = (spec.blocks + _AROUND_BLOCKS) * token_bytes + _LATENT_COPIES * latent_bytes
    inside = (count_block_tensors(spec, tokens) - _AROUND_BLOCKS) * token_bytes
    peak = max(inside, _estimate_alignment(settings, decode, recompute, spec.latents))
    return DecodeChoice(decode, recompute, checkpoints + peak, tiny_file if decode == "tiny" else None)


def list_modes(decode: str) -> list[tuple[str, bool]]:
    """Return pairs of a mode and whether to recompute, the one with most memory and least time first."""
    return {
        "auto": [("exact", False), ("exact", True), ("exact-low-memory", False), ("tiny", False)],
        "windowed": [("windowed", False), ("windowed", True)],
        "exact": [("exact", False), ("exact", True)],
        "exact-low-memory": [("exact-low-memory", False)],
        "tiny": [("tiny", False)],
    }[decode]


def _estimate_alignment(settings: MotionSettings, decode: str, recompute: bool, space: LatentSpace) -> float:
    """Return the bytes of decoder, pixels and flow net together."""
    latents, height, width = latent_frames(settings.frames), settings.height, settings.width
    frames, area = pixel_frames(latents), height * width
    cells, decoder = area / space.stride**2, DECODERS[space]
    if decode == "tiny":
        half_size = _estimate_pixels(frames, area / 4) + _estimate_flow(height / 2, width / 2)
        return _estimate_tiny_decoder(latents, cells) + half_size
    if decode == "exact-low-memory":
        chunk = TEMPORAL_STRIDE * LATENTS_AT_ONCE
        saved = _estimate_saved(LATENTS_AT_ONCE, chunk, decoder, cells, recompute)
        step = saved + _estimate_last_block(chunk, decoder, cells, recompute)
        # Three states: the one before a step, the one after it, and the gradient of one of them.
        step += 3 * _estimate_state(decoder, cells)
        return _estimate_pixels(frames, area) / 4 + max(_estimate_flow(height, width), step)
    if decode == "windowed" and settings.window + settings.context < latents:
        latents = settings.window + settings.context
        frames = TEMPORAL_STRIDE * (latents - settings.context // 2)
    comparison = _estimate_pixels(frames, area) + _estimate_flow(height, width)
    last_block = _estimate_last_block(frames, decoder, cells, recompute)
    return _estimate_saved(latents, frames, decoder, cells, recompute) + max(comparison, last_block)


def _estimate_flow(height: float, width: float) -> float:
    """Return the bytes of the flow net for one chunk of pairs.

    The flow is found at half of the frames' size if that is large enough.
    """
    scale = 0.5 if min(height, width) / 2 >= SEA_RAFT_M.least_side else 1.0
    return PAIRS_PER_CHUNK * _FLOW_PIXEL * height * width * scale**2


def _estimate_pixels(frames: int, area: float) -> float:
    """Return the bytes of decoded frames, and in float32 of their copy, its gradient, and the gradient
    rearranged.
    """
    return frames * 3 * area * (_HALF + 3 * _FLOAT)


def _estimate_saved(latents: int, frames: int, decoder: DecoderSizes, cells: float, recompute: bool) -> float:
    """Return the bytes that the decoder saves for backward: the inputs of its blocks, and their hidden
    tensors unless recomputed. `frames` are those of the two large stages, `cells` the cells of a latent.
    """
    stage_frames = (latents, 2 * latents, frames, frames)
    values = sum(
        count * stage.places * (stage.inputs + (0 if recompute else stage.hidden))
        for count, stage in zip(stage_frames, decoder.stages, strict=True)
    )
    return values * decoder.width * cells * _HALF


def _estimate_last_block(frames: int, decoder: DecoderSizes, cells: float, recompute: bool) -> float:
    """Return the bytes that the backward pass of the decoder's last block takes: the gradient of its input,
    next to that of its output, and the tensors inside of the block.
    """
    inside = _HIDDEN_FRAMES + (_RECOMPUTED_FRAMES if recompute else 0)
    return decoder.width * decoder.stages[-1].places * cells * _HALF * (frames + inside)


def _estimate_state(decoder: DecoderSizes, cells: float) -> float:
    """Return the bytes of the decoder state, two frames for each causal convolution."""
    channels = sum(stage.state * stage.places for stage in decoder.stages)
    return channels * decoder.width * cells * 2 * _HALF


def _estimate_tiny_decoder(latents: int, cells: float) -> float:
    """Return the bytes that the tiny decoder saves for backward, at half of the frame's size."""
    values = sum(channels * frames * latents * places for places, frames, channels in TINY_STAGES)
    return values * cells * _HALF
