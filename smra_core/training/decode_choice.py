"""Estimate the memory of a motion step for each decode mode, and choose the mode that fits the memory.

The estimate adds up the large tensors that each part keeps, from their sizes alone;
`python -m tests.benchmarks.motion_step` compares it with the sizes counted on the meta device. Weights,
optimizer and the device's own needs are added for the choice. Every number here is in bytes, every message in
GiB.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..encoders.sea_raft import PAIRS_PER_CHUNK
from ..encoders.sea_raft_config import SEA_RAFT_M
from ..wan.spec import TEMPORAL_STRIDE, WanSpec, latent_frames, pixel_frames
from .cost import count_lora_parameters, count_optimizer_bytes
from .mora import LATENTS_AT_ONCE, MotionSettings

log = logging.getLogger("smrabooth")

GIB = 2**30
MEMORY_ADVICE = {
    "exact": "Change decode to 'exact-low-memory', which has the same gradient, or to 'windowed'",
    "exact-low-memory": "Change decode to 'tiny', with the file of a tiny decoder",
    "windowed": "Lower window or context, or change decode to 'tiny', with the file of a tiny decoder",
}
"""Advice shown when a decode mode runs out of memory."""
_SMALLER_DATA = "lower batch_size, the frames, or the width and height"

_HALF, _FLOAT = 2, 4
"""Bytes of a value in half precision, and in float32."""
_INSIDE_A_BLOCK, _AROUND_BLOCKS = 45, 3
"""Size of the recomputed activations of one block of diffusers' DiT (several of them are in float32), and of
those that stay in memory around the blocks, in units of (tokens x dim) tensors in half precision.
"""
_LATENT_COPIES = 12
"""Number of tensors of the latents' size, in float32, that a step keeps."""
_FLOW_PIXEL = 4600
"""Bytes that SEA-RAFT M keeps for each pixel of a pair at its working size (0.21 GB a pair at half of
576x320).
"""
_DEVICE_NEEDS = 1.3e9
"""Bytes of the CUDA context and of the workspaces of convolutions; a guess."""
_OTHER_WEIGHTS = 0.4e9
"""Bytes of the DiT's embeddings, the VAE's decoder and the flow net."""
_MARGIN = 1.3
"""Factor of the estimate that must fit: the estimate is good to 15 %, and the pieces of an allocator never
fit without gaps.
"""

_DECODER_WIDTH = 96
"""Channels of the decoder's last stage."""


class DecoderStage(NamedTuple):
    """Sizes of the tensors that a stage of WAN's decoder keeps, with channels over the decoder's width."""

    share: float
    """Share of the frame's pixels that the stage works on."""
    inputs: int
    """Channels of the inputs of all its blocks together."""
    hidden: int
    """Channels of the hidden tensors of all its blocks together, which `recompute` does not keep."""
    state: int
    """Channels of the inputs of all its causal convolutions together; the state holds two frames of each."""


DECODER_STAGES = (
    DecoderStage(share=1 / 64, inputs=40, hidden=20, state=4 * 12),
    DecoderStage(share=1 / 16, inputs=10, hidden=12, state=4 * 7),
    DecoderStage(share=1 / 4, inputs=6, hidden=6, state=2 * 6),
    DecoderStage(share=1.0, inputs=4, hidden=3, state=7),
)
"""Stages of WAN's decoder. The first works on latents, the second on twice as many frames, the others on all
frames.
"""
TINY_STAGES = ((1 / 64, 1, 256 * 10), (1 / 16, 1, 128 * 10), (1 / 4, 2, 64 * 11))
"""Stages of the tiny decoder: share of the frame's pixels, frames per latent, and channels of all kept
activations, three of each of its nine memory blocks; the last upsampling is skipped.
"""
_HIDDEN_FRAMES, _RECOMPUTED_FRAMES = 34, 5
"""Memory inside of the last block's backward pass, in units of a frame as wide as the decoder. Of a few
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
    token_bytes = spec.latents.count_tokens(*size) * spec.dim * _HALF
    latent_bytes = math.prod(spec.latents.latent_shape(*size)) * _FLOAT
    checkpoints = (spec.blocks + _AROUND_BLOCKS) * token_bytes + _LATENT_COPIES * latent_bytes
    peak = max(_INSIDE_A_BLOCK * token_bytes, _estimate_alignment(settings, decode, recompute))
    return DecodeChoice(decode, recompute, checkpoints + peak, tiny_file if decode == "tiny" else None)


def choose_decode(
    settings: MotionSettings,
    spec: WanSpec,
    device: torch.device,
    tiny_decoder: Path | None,
    memory: float | None = None,
) -> DecodeChoice:
    """Return the mode named in the settings; for `auto`, the first of three (fastest first) that fits into
    `memory` bytes.

    If `memory` is not given, it is all of the device's: what is free at this moment depends on other
    programs, and another choice would be another run. A warning is logged if less than needed is free now.
    Where mora_weight is 0 nothing is decoded, and the mode stays as it is. ValueError if the mode is `tiny`
    and there is no tiny decoder's file. Logs what the step will need.
    """
    if not settings.mora_weight:
        return DecodeChoice(settings.decode, False, 0.0)
    if settings.decode == "tiny" and tiny_decoder is None:
        raise ValueError(
            "decode 'tiny' needs a tiny decoder's file. Give lighttaew2_1 or taew2_1, or change decode."
        )
    free = memory
    if memory is None and device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(device)
    modes = [mode for mode in _list_modes(settings.decode) if mode[0] != "tiny" or tiny_decoder is not None]
    choices = [estimate(settings, *mode, spec, tiny_decoder) for mode in modes]
    if memory is None or free is None:
        return choices[0]
    other = estimate_other_memory(settings, spec)
    choice = _choose_first_that_fits(choices, memory, other)
    needed = choice.bytes + other
    log.info(
        "decode: %s%s, about %.1f GiB (%.1f of them activations) of %.1f GiB",
        choice.decode, " with recompute" if choice.recompute else "",
        needed / GIB, choice.bytes / GIB, memory / GIB,
    )  # fmt: skip
    if free < needed <= memory:
        log.warning(
            "Only %.1f GiB are free now, and the step may run out of memory. Close what else uses the card.",
            free / GIB,
        )
    elif needed > memory:
        hint = "" if tiny_decoder else " A tiny decoder's file (lighttaew2_1) would need the least."
        log.warning("The step may run out of memory. Lower the frames, width or height.%s", hint)
    return choice


def choose_memory_advice(settings: MotionSettings) -> str:
    """Return what to change when a step with these settings runs out of memory, as a sentence."""
    advice = MEMORY_ADVICE.get(settings.decode) if settings.mora_weight else None
    return f"{advice}; or {_SMALLER_DATA}." if advice else f"{_SMALLER_DATA.capitalize()}."


def _list_modes(decode: str) -> list[tuple[str, bool]]:
    """Return pairs of a mode and whether to recompute, the one with most memory and least time first."""
    return {
        "auto": [("windowed", False), ("windowed", True), ("tiny", False)],
        "windowed": [("windowed", False), ("windowed", True)],
        "exact": [("exact", False), ("exact", True)],
        "exact-low-memory": [("exact-low-memory", False)],
        "tiny": [("tiny", False)],
    }[decode]


def _choose_first_that_fits(choices: list[DecodeChoice], memory: float, other: float) -> DecodeChoice:
    """Return the first choice that fits, or the smallest if none fits."""
    fitting = [choice for choice in choices if choice.bytes * _MARGIN + other <= memory]
    return fitting[0] if fitting else min(choices, key=lambda choice: choice.bytes)


def estimate_other_memory(settings: MotionSettings, spec: WanSpec) -> float:
    """Return the bytes that a step needs besides its activations, for what is not loaded yet: weights, LoRA
    with its optimizer, and the device's own needs.
    """
    block_parameters = 8 * spec.dim**2 + 2 * spec.dim * spec.ffn
    frozen = spec.blocks * block_parameters * _HALF + _OTHER_WEIGHTS
    trained = count_lora_parameters(spec, settings.plan.select(spec.linear_names()), settings.rank)
    return frozen + count_optimizer_bytes(trained) + _DEVICE_NEEDS


def _estimate_alignment(settings: MotionSettings, decode: str, recompute: bool) -> float:
    """Return the bytes of decoder, pixels and flow net together."""
    latents, height, width = latent_frames(settings.frames), settings.height, settings.width
    frames, area = pixel_frames(latents), height * width
    if decode == "tiny":
        half_size = _estimate_pixels(frames, area / 4) + _estimate_flow(height / 2, width / 2)
        return _estimate_tiny_decoder(latents, area) + half_size
    if decode == "exact-low-memory":
        chunk = TEMPORAL_STRIDE * LATENTS_AT_ONCE
        saved = _estimate_saved(LATENTS_AT_ONCE, chunk, area, recompute)
        step = saved + _estimate_last_block(chunk, area, recompute)
        # Three states: the one before a step, the one after it, and the gradient of one of them.
        step += 3 * _estimate_state(area)
        return _estimate_pixels(frames, area) / 4 + max(_estimate_flow(height, width), step)
    if decode == "windowed" and settings.window + settings.context < latents:
        latents = settings.window + settings.context
        frames = TEMPORAL_STRIDE * (latents - settings.context // 2)
    comparison = _estimate_pixels(frames, area) + _estimate_flow(height, width)
    last_block = _estimate_last_block(frames, area, recompute)
    return _estimate_saved(latents, frames, area, recompute) + max(comparison, last_block)


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


def _estimate_saved(latents: int, frames: int, area: float, recompute: bool) -> float:
    """Return the bytes that the decoder saves for backward: the inputs of its blocks, and their hidden
    tensors unless recomputed. `frames` are those of the two large stages, `area` the pixels of a frame.
    """
    stage_frames = (latents, 2 * latents, frames, frames)
    channels = [stage.inputs + (0 if recompute else stage.hidden) for stage in DECODER_STAGES]
    values = sum(
        count * width * stage.share
        for count, width, stage in zip(stage_frames, channels, DECODER_STAGES, strict=True)
    )
    return values * _DECODER_WIDTH * area * _HALF


def _estimate_last_block(frames: int, area: float, recompute: bool) -> float:
    """Return the bytes that the backward pass of the decoder's last block takes: the gradient of its input,
    next to that of its output, and the tensors inside of the block.
    """
    inside = _HIDDEN_FRAMES + (_RECOMPUTED_FRAMES if recompute else 0)
    return _DECODER_WIDTH * area * _HALF * (frames + inside)


def _estimate_state(area: float) -> float:
    """Return the bytes of the decoder state, two frames for each causal convolution."""
    channels = sum(stage.state * stage.share for stage in DECODER_STAGES)
    return channels * _DECODER_WIDTH * area * 2 * _HALF


def _estimate_tiny_decoder(latents: int, area: float) -> float:
    """Return the bytes that the tiny decoder saves for backward, at half of the frame's size."""
    values = sum(channels * frames * latents * share for share, frames, channels in TINY_STAGES)
    return values * area * _HALF
