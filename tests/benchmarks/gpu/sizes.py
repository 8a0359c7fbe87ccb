"""Sizes of models and inputs: the paper's on a card, tiny ones to try the code on a CPU."""

from dataclasses import replace
from typing import NamedTuple

import torch

from smra_core.encoders.dinov2_files import DinoV2Config
from smra_core.encoders.sea_raft_config import SEA_RAFT_M, SEA_RAFT_MINIATURE, SeaRaftConfig
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.sura import SubjectSettings
from smra_core.wan.feed_forward import CHUNK_TOKENS
from smra_core.wan.sampler import SamplingSettings
from smra_core.wan.spec import TEXT_TOKENS, WAN_1_3B, WAN_14B, WanSpec


class ReleasedDecode(NamedTuple):
    """How the authors' code decodes for the flow loss; sizes are in latents."""

    latents: int
    """Latents that are decoded, cut from the clip."""
    dropped: int
    """First frames that are not compared."""
    tile: tuple[int, int]
    stride: tuple[int, int]


class Sizes(NamedTuple):
    """Sizes of one run of the measurements."""

    spec: WanSpec
    large: WanSpec
    """The model whose memory is measured beside the first."""
    dtype: torch.dtype
    motion: MotionSettings
    released: ReleasedDecode
    subject: SubjectSettings
    sampling: SamplingSettings
    flow: SeaRaftConfig
    vae_width: int
    tiny_widths: tuple[int, int, int, int]
    dinov2: dict[str, DinoV2Config]
    """DINOv2's sizes by name; the first one's features are what a subject is aligned with."""
    text: int
    """Tokens of a text context."""
    few_blocks: int
    """Blocks of the large model where steps are compared that keep weights in different ways."""
    chunk_tokens: int
    """Most tokens of a chunk of a feed-forward net."""


PAPER = Sizes(
    WAN_1_3B,
    WAN_14B,
    torch.bfloat16,
    MotionSettings(),
    ReleasedDecode(latents=6, dropped=5, tile=(30, 52), stride=(15, 26)),
    SubjectSettings(),
    SamplingSettings(),
    SEA_RAFT_M,
    vae_width=96,
    tiny_widths=(256, 128, 64, 64),
    dinov2={
        "g": DinoV2Config(1536, depth=40, heads=24, hidden=8192, gated=True, grid=37, registers=0),
        "B": DinoV2Config(768, depth=12, heads=12, hidden=3072, gated=False, grid=37, registers=0),
    },
    text=TEXT_TOKENS,
    few_blocks=8,
    chunk_tokens=CHUNK_TOKENS,
)
TINY = Sizes(
    WanSpec("tiny", blocks=2, dim=32, ffn=48, heads=2),
    WanSpec("less tiny", blocks=3, dim=48, ffn=64, heads=3),
    torch.float32,
    MotionSettings(width=32, height=32, frames=9, window=1, context=1, rank=4),
    ReleasedDecode(latents=2, dropped=2, tile=(3, 3), stride=(2, 2)),
    SubjectSettings(width=64, height=64, rank=4, projector_width=16),
    SamplingSettings(width=64, height=64, frames=5),
    replace(SEA_RAFT_MINIATURE, levels=1),
    vae_width=4,
    tiny_widths=(8, 8, 8, 8),
    dinov2={"S": DinoV2Config(64, depth=1, heads=1, hidden=64, gated=False, grid=4, registers=0)},
    text=8,
    few_blocks=2,
    chunk_tokens=4,
)
