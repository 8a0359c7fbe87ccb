"""Which way to decode a motion step can afford: its memory told beforehand, and the choice by what is free.

The estimate adds up the large tensors that each part keeps, from their sizes alone. Held against what tensors
hold on the meta device (python -m tests.benchmarks.motion_step prints both); weights, optimizer and the
device's own needs are added for the choice.
"""

import logging
from dataclasses import dataclass

import torch

from ..encoders.sea_raft import PAIRS_PER_CHUNK
from ..encoders.sea_raft_config import SEA_RAFT_M
from ..wan.spec import (
    LATENT_CHANNELS,
    PATCH,
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    WanSpec,
    latent_frames,
    pixel_frames,
)
from .mora import LATENTS_AT_ONCE, MotionSettings

log = logging.getLogger("smrabooth")

GB = 1e9
_HALF, _FLOAT = 2, 4
_DECODER_WIDTH = 96
_INSIDE_A_BLOCK, _AROUND_BLOCKS = 45, 3
"""Tensors as wide as the tokens, in half precision, that one block of diffusers' DiT makes again for its
backward pass (several are in float32), and that stay alive around the blocks.
"""
_FLOW_BYTES = 4600
"""That SEA-RAFT M keeps for a pixel of a pair at its working size (0.21 GB a pair at half of 576x320)."""
_DEVICE_NEEDS = 1.3 * GB
"""CUDA context and workspaces of convolutions; a guess."""
_OTHER_WEIGHTS = 0.4 * GB
"""DiT's embeddings, the VAE's decoder and the flow net."""
_MARGIN = 1.3
"""The estimate is good to 15 %, and an allocator's pieces never fit without gaps."""


@dataclass(frozen=True)
class DecodeChoice:
    """A way to decode, and the most that the step's activations take."""

    decode: str
    recompute: bool
    """Of the full decoder's blocks, half is computed again in backward."""
    bytes: float


def estimate(settings: MotionSettings, decode: str, recompute: bool, spec: WanSpec) -> DecodeChoice:
    """Peak of a motion step's activations in half precision, one sample a step, DiT blocks checkpointed."""
    token_bytes = _tokens(settings) * spec.dim * _HALF
    waiting = (spec.blocks + _AROUND_BLOCKS) * token_bytes + 12 * _latent_bytes(settings)
    inside = max(_INSIDE_A_BLOCK * token_bytes, _decoding(settings, decode, recompute))
    return DecodeChoice(decode, recompute, waiting + inside)


def choose_decode(
    settings: MotionSettings, spec: WanSpec, device: torch.device, has_tiny: bool, free: float | None = None
) -> DecodeChoice:
    """The way that the settings name, or for `auto` the dearest of three that fits into `free` bytes; the
    device itself is asked when they are not given.

    ValueError when the tiny decoder is asked for and there is none. Logs what the step will need.
    """
    if settings.decode == "tiny" and not has_tiny:
        raise ValueError(
            "decode 'tiny' needs a tiny decoder's file. Give lighttaew2_1 or taew2_1, or change decode."
        )
    if free is None and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    ways = [way for way in _ways(settings.decode) if way[0] != "tiny" or has_tiny]
    choices = [estimate(settings, decode, recompute, spec) for decode, recompute in ways]
    if free is None:
        return choices[0]
    beside = beside_activations(settings, spec)
    choice = _first_that_fits(choices, free, beside)
    need = choice.bytes + beside
    log.info(
        "decode: %s%s, about %.1f GB (%.1f of them activations) of %.1f GB free",
        choice.decode, " with recompute" if choice.recompute else "", need / GB, choice.bytes / GB, free / GB,
    )  # fmt: skip
    if need > free:
        hint = "" if has_tiny else " A tiny decoder's file (lighttaew2_1) would need the least."
        log.warning("The step may run out of memory: lower the frames, width or height.%s", hint)
    return choice


def _ways(decode: str) -> list[tuple[str, bool]]:
    """Decode and whether to recompute, the one that needs most memory and least time first."""
    return {
        "auto": [("windowed", False), ("windowed", True), ("tiny", False)],
        "windowed": [("windowed", False), ("windowed", True)],
        "exact": [("exact", False), ("exact", True)],
        "exact-low-memory": [("exact-low-memory", False)],
        "tiny": [("tiny", False)],
    }[decode]


def _first_that_fits(choices: list[DecodeChoice], free: float, beside: float) -> DecodeChoice:
    """Or, if none does, the one that needs least."""
    fitting = [choice for choice in choices if choice.bytes * _MARGIN + beside <= free]
    return fitting[0] if fitting else min(choices, key=lambda choice: choice.bytes)


def beside_activations(settings: MotionSettings, spec: WanSpec) -> float:
    """Bytes of weights, LoRA with its optimizer, and the device's own needs, for what is not loaded yet."""
    block = 8 * spec.dim**2 + 2 * spec.dim * spec.ffn
    frozen = spec.blocks * block * _HALF + _OTHER_WEIGHTS
    names = settings.plan.select(spec.linear_names())
    trained = sum(settings.rank * sum(spec.linear_shape(name)) for name in names)
    return frozen + 4 * trained * _FLOAT + _DEVICE_NEEDS


def _tokens(settings: MotionSettings) -> int:
    side = SPATIAL_STRIDE * PATCH[1]
    return latent_frames(settings.frames) * (settings.height // side) * (settings.width // side)


def _latent_bytes(settings: MotionSettings) -> float:
    area = settings.height * settings.width / SPATIAL_STRIDE**2
    return LATENT_CHANNELS * latent_frames(settings.frames) * area * _FLOAT


def _decoding(settings: MotionSettings, decode: str, recompute: bool) -> float:
    """Of decoder, pixels and flow together."""
    latents, height, width = latent_frames(settings.frames), settings.height, settings.width
    frames, area = pixel_frames(latents), height * width
    if decode == "tiny":
        half = _pixels(frames, area / 4) + _flow(height / 2, width / 2)
        return _tiny_kept(latents, area) + half
    if decode == "exact-low-memory":
        some = TEMPORAL_STRIDE * LATENTS_AT_ONCE
        step = _kept(LATENTS_AT_ONCE, some, area, recompute) + _working(some, area, recompute)
        # The states before a step, those after it, and the gradient of one of them.
        return _pixels(frames, area) / 4 + max(_flow(height, width), step + 3 * _states(area))
    if decode == "windowed" and settings.window + settings.context < latents:
        latents = settings.window + settings.context
        frames = TEMPORAL_STRIDE * (latents - settings.context // 2)
    kept = _kept(latents, frames, area, recompute)
    comparing = _pixels(frames, area) + _flow(height, width)
    return kept + max(comparing, _working(frames, area, recompute))


def _flow(height: float, width: float) -> float:
    """Of the pairs that are alive together, found at half of the frames' size where that is large enough."""
    scale = 0.5 if min(height, width) / 2 >= SEA_RAFT_M.least_side else 1.0
    return PAIRS_PER_CHUNK * _FLOW_BYTES * height * width * scale**2


def _pixels(frames: int, area: float) -> float:
    """Decoded frames, and in float32 their copy, its gradient and the gradient's last form."""
    return frames * 3 * area * (_HALF + 3 * _FLOAT)


def _kept(latents: int, frames: int, area: float, recompute: bool) -> float:
    """Inputs of the decoder's blocks, and unless recomputed as much inside of them.

    `frames` are those of the two large stages. Each term is channels over the decoder's width, times frames,
    times the share of the full size.
    """
    inputs = 40 * latents / 64 + 10 * 2 * latents / 16 + 6 * frames / 4 + 4 * frames
    inside = 20 * latents / 64 + 12 * 2 * latents / 16 + 6 * frames / 4 + 3 * frames
    return (inputs if recompute else inputs + inside) * _DECODER_WIDTH * area * _HALF


def _working(frames: int, area: float, recompute: bool) -> float:
    """Backward through the last block: its own gradient beside the one that came, and inside of it, of a few
    frames and the two before, the gradients of two convolutions and their norms; what was recomputed, too.
    """
    inside = 39 if recompute else 34  # frames' worth: 3 x 6 + 4 x 4, and 5 more
    return _DECODER_WIDTH * area * _HALF * (frames + inside)


def _states(area: float) -> float:
    """What the decoder remembers: two frames for each of its convolutions."""
    per_stage = [(4 * _DECODER_WIDTH * 12, 1 / 64), (4 * _DECODER_WIDTH * 7, 1 / 16)]
    per_stage += [(2 * _DECODER_WIDTH * 6, 1 / 4), (_DECODER_WIDTH * 7, 1.0)]
    return sum(channels * share for channels, share in per_stage) * area * 2 * _HALF


def _tiny_kept(latents: int, area: float) -> float:
    """Three activations of each of its nine memory blocks, at half the size."""
    stages = [(256 * 10, latents, 1 / 64), (128 * 10, latents, 1 / 16), (64 * 11, 2 * latents, 1 / 4)]
    return sum(channels * frames * share for channels, frames, share in stages) * area * _HALF
