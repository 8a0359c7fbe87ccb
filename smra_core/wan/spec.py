"""Facts of the WAN video model: sizes, module names, frame rules and the token grid."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch

LATENT_CHANNELS = 16
TEMPORAL_STRIDE, SPATIAL_STRIDE = 4, 8
"""Frames per latent (after the first), and pixels per latent cell along each side."""
PATCH = (1, 2, 2)
"""Latent cells of one token along t, y, x."""
TOKEN_PIXELS = SPATIAL_STRIDE * PATCH[1]
"""Width and height in pixels that one token covers; frame sizes must be multiples of it."""
TEXT_DIM, TEXT_TOKENS = 4096, 512
"""Width and number of the text tokens."""
TIMESTEPS = 1000
"""Number of training timesteps; the DiT's timestep input is 1000 * sigma."""

# Per-channel statistics that normalize the latents of WAN 2.1's video VAE (published with the model).
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


class Role(Enum):
    """Kind of a linear. The value is its path inside an attention or a block, in native WAN names."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the field's name for the output projection
    FFN_0 = "ffn.0"
    FFN_2 = "ffn.2"

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of this role's linears in a block: in both attentions, or in the feed-forward net."""
        if self in (Role.FFN_0, Role.FFN_2):
            return (self.value,)
        return (f"self_attn.{self.value}", f"cross_attn.{self.value}")


@dataclass(frozen=True)
class WanSpec:
    """Sizes of one WAN text-to-video DiT."""

    name: str
    blocks: int
    dim: int
    ffn: int
    heads: int

    def linear_names(self) -> list[str]:
        """List the native names of all linears that can have an adapter, block by block."""
        return [f"blocks.{i}.{path}" for i in range(self.blocks) for role in Role for path in role.paths]

    def linear_shape(self, name: str) -> tuple[int, int]:
        """Return (out_features, in_features) of a linear, given its native name."""
        role = parse_linear(name).role
        wide = {Role.FFN_0: (self.ffn, self.dim), Role.FFN_2: (self.dim, self.ffn)}
        return wide.get(role, (self.dim, self.dim))


WAN_1_3B = WanSpec("Wan2.1-T2V-1.3B", blocks=30, dim=1536, ffn=8960, heads=12)
WAN_14B = WanSpec("Wan2.1-T2V-14B", blocks=40, dim=5120, ffn=13824, heads=40)
SPECS = (WAN_1_3B, WAN_14B)


def find_spec(blocks: int, dim: int, ffn: int, heads: int) -> WanSpec:
    """Return the published model of these sizes, or a spec named by its sizes."""
    sizes = (blocks, dim, ffn, heads)
    known = {(spec.blocks, spec.dim, spec.ffn, spec.heads): spec for spec in SPECS}
    return known.get(sizes, WanSpec(f"Wan2.1-T2V of {blocks} blocks, width {dim}", *sizes))


class LinearName(NamedTuple):
    """Parts of a native linear name."""

    block: int
    path: str
    role: Role


_ROLE_OF_PATH = {path: role for role in Role for path in role.paths}
# Anchored: VACE models also have `vace_blocks.N.self_attn.q`, which is not ours.
_LINEAR = re.compile(r"^blocks\.(\d+)\.(.+)$")


def parse_linear(name: str) -> LinearName:
    """Parse a native linear name; raise ValueError for anything but a linear of a transformer block."""
    match = _LINEAR.match(name)
    if match is None or match[2] not in _ROLE_OF_PATH:
        raise ValueError(
            f"{name!r} is not a linear of a WAN block; expected blocks.N. and one of {sorted(_ROLE_OF_PATH)}."
        )
    return LinearName(int(match[1]), match[2], _ROLE_OF_PATH[match[2]])


def latent_frames(frames: int) -> int:
    """Return the number of latents that hold this many frames; raise ValueError unless frames = 4n+1."""
    if frames < 1 or (frames - 1) % TEMPORAL_STRIDE:
        lower = max(1, trim_frames(frames)) if frames >= 1 else 1
        raise ValueError(f"WAN needs 4n+1 frames, got {frames}. Use {lower} or {lower + TEMPORAL_STRIDE}.")
    return (frames - 1) // TEMPORAL_STRIDE + 1


def pixel_frames(latents: int) -> int:
    """Return the number of frames that this many latents decode to."""
    return TEMPORAL_STRIDE * (latents - 1) + 1


def trim_frames(frames: int) -> int:
    """Return the largest 4n+1 that does not exceed `frames`."""
    return (frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1


def frames_of_latent(index: int) -> range:
    """Return the frames of latent `index`: latent 0 holds frame 0, latent k >= 1 holds frames 4k-3 .. 4k."""
    return range(0, 1) if index == 0 else range(TEMPORAL_STRIDE * index - 3, TEMPORAL_STRIDE * index + 1)


def check_size(width: int, height: int) -> None:
    """Raise ValueError unless both sides are multiples of the 16 px that one token covers."""
    if width < TOKEN_PIXELS or height < TOKEN_PIXELS or width % TOKEN_PIXELS or height % TOKEN_PIXELS:
        near = [max(1, round(side / TOKEN_PIXELS)) * TOKEN_PIXELS for side in (width, height)]
        raise ValueError(f"Size {width}x{height} is not a multiple of 16. Use {near[0]}x{near[1]}.")


def token_grid(latent_shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int]:
    """Return the number of tokens along t, y, x for latents `(..., f, h, w)`.

    Tokens are laid out row-major in that order.
    """
    f, h, w = latent_shape[-3:]
    return f // PATCH[0], h // PATCH[1], w // PATCH[2]


def latent_shape(frames: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the shape `16 f h w` of the latents of a clip; raise ValueError unless frames = 4n+1."""
    return LATENT_CHANNELS, latent_frames(frames), height // SPATIAL_STRIDE, width // SPATIAL_STRIDE


def count_tokens(frames: int, width: int, height: int) -> int:
    """Return the number of tokens that the DiT sees of a clip."""
    f, h, w = token_grid(latent_shape(frames, width, height))
    return f * h * w
