"""What the arms of the bench have in common: one training of an arm, and the frozen nets."""

from typing import Any, NamedTuple

import torch

from ...decoding.wan_decoder import WanVideoDecoder
from ...encoders.sea_raft import SeaRaft
from ...wan.interfaces import Denoiser


class ArmRun(NamedTuple):
    """One training of an arm."""

    arm: Any
    """A MotionArm or a SubjectArm."""
    case: str
    """Held-out motion or subject that is learned."""
    seed: int


class Nets(NamedTuple):
    """The frozen nets of the miniature on one device."""

    denoiser: Denoiser
    decoder: WanVideoDecoder
    flow_net: SeaRaft
    device: torch.device
