"""Sizes of the SEA-RAFT nets, and the scale at which they compare frames."""

from dataclasses import dataclass, replace

from .sea_raft_layers import CELL


@dataclass(frozen=True)
class SeaRaftConfig:
    """Sizes of a SEA-RAFT net and how it is run; the defaults are those of the published nets."""

    name: str
    blocks: tuple[int, int, int]
    """Number of residual blocks in each encoder stage."""
    stem: int = 64
    widths: tuple[int, int, int] = (64, 128, 256)
    dim: int = 128
    """Channels of the hidden state, and of the context."""
    levels: int = 4
    radius: int = 4
    refinements: int = 2
    iterations: int = 4
    scale: int = -1
    """Exponent of the frames' resizing by 2**scale: -1 for the Spring weights, 0 for Sintel and KITTI."""

    @property
    def correlations(self) -> int:
        """Number of correlation values around each cell, on all levels together."""
        return self.levels * (2 * self.radius + 1) ** 2

    @property
    def least_side(self) -> int:
        """Shortest side in pixels, after resizing, with two cells on the coarsest correlation level."""
        return 2 * CELL * 2 ** (self.levels - 1)


SEA_RAFT_S = SeaRaftConfig("SEA-RAFT S", blocks=(2, 2, 2))
SEA_RAFT_M = SeaRaftConfig("SEA-RAFT M", blocks=(3, 4, 6))
SEA_RAFT_L = replace(SEA_RAFT_M, name="SEA-RAFT L", iterations=12)
"""The published L, which is M with more iterations."""
SEA_RAFT_MINIATURE = SeaRaftConfig(
    "SEA-RAFT miniature", (1, 1, 1), 32, (32, 48, 64), dim=48, levels=2, radius=3, iterations=3, scale=0
)
"""Sizes for clips of 64x64 pixels with small motions."""


def choose_scale(config: SeaRaftConfig, height: int, width: int) -> int:
    """Return the scale (exponent of 2) at which frames of this size are compared: the config's, or 0 if they
    are small.

    ValueError if even the full size is below `config.least_side`.
    """
    short = min(height, width)
    for scale in (config.scale, 0):
        if short * 2.0**scale >= config.least_side:
            return scale
    raise ValueError(
        f"Frames of {width}x{height} are too small for {config.name}: the short side must be at least "
        f"{config.least_side} px. Use larger frames."
    )
