"""Sizes of WAN's two decoders, from which the memory and the operations of a motion step are estimated."""

from typing import NamedTuple

from ..wan.spec import LATENTS_21, LATENTS_22, LatentSpace


class DecoderStage(NamedTuple):
    """Sizes of the tensors that a stage of WAN's decoder keeps, with channels over the decoder's width."""

    places: int
    """Places that the stage works on, for each latent cell."""
    inputs: int
    """Channels of the inputs of all its blocks together."""
    hidden: int
    """Channels of the hidden tensors of all its blocks together, which `recompute` does not keep."""
    state: int
    """Channels of the inputs of all its causal convolutions together; the state holds two frames of each."""


class DecoderSizes(NamedTuple):
    """Sizes of a decoder of WAN, and of the tiny decoder of the same latents."""

    width: int
    """Channels of the last stage."""
    stages: tuple[DecoderStage, ...]
    """The first works on latents, the second on twice as many frames, the others on all frames."""
    weights: float
    """Bytes of its weights in half precision."""
    frame_flops: float
    """Floating-point operations of a frame of `MEASURED_PIXELS`, forward and backward."""
    small_share: float
    """Share of them in the stages that do not work on all frames."""
    tiny_flops: float
    """The operations of a frame in the tiny decoder, which shows half of the width and height."""


MEASURED_PIXELS = 576 * 320
"""Frame size in pixels at which FLOPs were counted (`python -m tests.benchmarks.motion_step`)."""
DECODERS: dict[LatentSpace, DecoderSizes] = {
    LATENTS_21: DecoderSizes(
        width=96,
        stages=(
            DecoderStage(places=1, inputs=40, hidden=20, state=4 * 12),
            DecoderStage(places=4, inputs=10, hidden=12, state=4 * 7),
            DecoderStage(places=16, inputs=6, hidden=6, state=2 * 6),
            DecoderStage(places=64, inputs=4, hidden=3, state=7),
        ),
        weights=0.15e9, frame_flops=3.14e12, small_share=0.21, tiny_flops=0.13e12,
    ),
    LATENTS_22: DecoderSizes(
        width=256,
        stages=(
            DecoderStage(places=1, inputs=40, hidden=20, state=4 * 12),
            DecoderStage(places=4, inputs=12, hidden=12, state=4 * 7),
            DecoderStage(places=16, inputs=8, hidden=6, state=14),
            DecoderStage(places=64, inputs=5, hidden=3, state=8),
        ),
        weights=1.11e9, frame_flops=6.83e12, small_share=0.235, tiny_flops=0.05e12,
    ),
}  # fmt: skip
"""Sizes of the decoders, by the latents that they decode."""
TINY_STAGES = ((1, 1, 256 * 10), (4, 1, 128 * 10), (16, 2, 64 * 11))
"""Stages of a tiny decoder: places for each latent cell, frames per latent, and channels of all kept
activations, three of each of its nine memory blocks; the last upsampling is skipped.
"""
