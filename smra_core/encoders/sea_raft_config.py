"""Sizes of the SEA-RAFT nets, and the frames they can compare."""

from dataclasses import dataclass, replace

from .sea_raft_layers import CELL


@dataclass(frozen=True)
class SeaRaftConfig:
    """Sizes of one SEA-RAFT and how it is run; the defaults are those of the published nets."""

    name: str
    blocks: tuple[int, int, int]
    """Residual blocks of each encoder stage."""
    stem: int = 64
    widths: tuple[int, int, int] = (64, 128, 256)
    dim: int = 128
    """Channels of hidden state and of context."""
    levels: int = 4
    radius: int = 4
    refinements: int = 2
    iterations: int = 4
    scale: int = -1
    """Flow is found on frames resized by 2**scale: -1 for the Spring weights, 0 for Sintel and KITTI."""

    @property
    def correlations(self) -> int:
        return self.levels * (2 * self.radius + 1) ** 2

    @property
    def least_side(self) -> int:
        """Shortest side in pixels, after scaling, that leaves two cells on the coarsest correlation level."""
        return 2 * CELL * 2 ** (self.levels - 1)


SEA_RAFT_S = SeaRaftConfig("SEA-RAFT S", blocks=(2, 2, 2))
SEA_RAFT_M = SeaRaftConfig("SEA-RAFT M", blocks=(3, 4, 6))
SEA_RAFT_L = replace(SEA_RAFT_M, name="SEA-RAFT L", iterations=12)
"""The published L is the weights of M, run longer."""
SEA_RAFT_MINIATURE = SeaRaftConfig(
    "SEA-RAFT miniature", (1, 1, 1), 32, (32, 48, 64), dim=48, levels=2, radius=3, iterations=3, scale=0
)
"""For clips of 64x64 pixels with small motions."""


def working_scale(config: SeaRaftConfig, height: int, width: int) -> int:
    """The scale (power of two) at which frames of this size are compared: the config's, or 0 for small ones.

    ValueError when even full size is below `config.least_side`.
    """
    short = min(height, width)
    for scale in (config.scale, 0):
        if short * 2.0**scale >= config.least_side:
            return scale
    raise ValueError(
        f"Frames of {width}x{height} are too small for {config.name}: the short side must be at least "
        f"{config.least_side} px. Use larger frames."
    )
