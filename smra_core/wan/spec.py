"""Facts of the WAN video model: sizes, module names, frame rules and the token grid."""

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import torch

COLORS = 3
"""Channels of a pixel."""
TEMPORAL_STRIDE = 4
"""Frames per latent, after the first, which holds one."""
PATCH = (1, 2, 2)
"""Latent cells of one token along t, y, x."""
TEXT_DIM, TEXT_TOKENS = 4096, 512
"""Width and number of the text tokens."""
TIMESTEPS = 1000
"""Number of training timesteps; the DiT's timestep input is 1000 * sigma."""
T2V_BOUNDARY, I2V_BOUNDARY = 0.875, 0.9
"""Noise levels at which the experts of Wan 2.2 hand over, in text to video and in image to video
(Wan-Video/Wan2.2, `boundary` in its configs).
"""
I2V_CHANNELS = 36
"""Input channels of image to video: the noisy latents' 16, a mask's 4, and the given frames' 16."""


@dataclass(frozen=True)
class LatentSpace:
    """Sizes of the latents of one of WAN's two video VAEs, and the frame rate of its models' videos."""

    name: str
    """Version of WAN that the VAE came with."""
    channels: int
    stride: int
    """Pixels per latent cell along each side."""
    patch: int
    """Side of the square of pixels whose colors the VAE's convolutions take as the channels of one place."""
    fps: float
    """Frames per second of the videos that the models with this VAE were trained on."""
    vae_file: str
    """Name of the VAE's file as ComfyUI's users know it."""
    authors_vae_file: str
    """Name of the VAE's file in the repositories of WAN's authors."""
    tiny_files: tuple[str, ...]
    """Names of the tiny decoders' files that decode these latents."""
    mean: tuple[float, ...]
    """Mean of each channel of the VAE's own latents; the DiT's latents have mean 0."""
    std: tuple[float, ...]
    """Standard deviation of each channel of the VAE's own latents; that of the DiT's latents is 1."""

    @property
    def token_pixels(self) -> int:
        """Width and height in pixels that one token covers; frame sizes must be multiples of it."""
        return self.stride * PATCH[1]

    @property
    def image_channels(self) -> int:
        """Channels that the VAE's first convolution takes and its last one gives."""
        return COLORS * self.patch**2

    def name_tiny_files(self) -> str:
        """Return the names of the tiny decoders' files, for a message."""
        return " or ".join(self.tiny_files)

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError unless both sides are multiples of the pixels that one token covers."""
        pixels = self.token_pixels
        if min(width, height) < pixels or width % pixels or height % pixels:
            near = [max(1, round(side / pixels)) * pixels for side in (width, height)]
            raise ValueError(f"Size {width}x{height} is not a multiple of {pixels}. Use {near[0]}x{near[1]}.")

    def latent_shape(self, frames: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the shape `C f h w` of the latents of a clip; raise ValueError unless frames = 4n+1."""
        return self.channels, latent_frames(frames), height // self.stride, width // self.stride

    def count_tokens(self, frames: int, width: int, height: int) -> int:
        """Return the number of tokens that the DiT sees of a clip."""
        f, h, w = token_grid(self.latent_shape(frames, width, height))
        return f * h * w


LATENTS_21 = LatentSpace(
    "WAN 2.1", channels=16, stride=8, patch=1, fps=16.0,
    vae_file="wan_2.1_vae.safetensors", authors_vae_file="Wan2.1_VAE.pth",
    tiny_files=("lighttaew2_1", "taew2_1"),
    # Statistics that were published with the model.
    mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
)  # fmt: skip
"""Latents of every model of WAN 2.1, and of the models of 14B of Wan 2.2."""
LATENTS_22 = LatentSpace(
    "Wan 2.2 5B", channels=48, stride=16, patch=2, fps=24.0,
    vae_file="wan2.2_vae.safetensors", authors_vae_file="Wan2.2_VAE.pth",
    tiny_files=("lighttaew2_2", "taew2_2"),
    mean=(
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
        -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
        -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
        -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
        0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    std=(
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
        0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
        0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
        0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
        0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
)  # fmt: skip
"""Latents of Wan2.2-TI2V-5B alone."""
LATENT_SPACES = {space.channels: space for space in (LATENTS_21, LATENTS_22)}
"""WAN's latent spaces, by their numbers of channels, which tell them apart."""


def find_latents(channels: int) -> LatentSpace:
    """Return the latent space of so many channels; raise ValueError where WAN has none."""
    if channels not in LATENT_SPACES:
        raise ValueError(f"Latents of WAN have {sorted(LATENT_SPACES)} channels, got {channels}.")
    return LATENT_SPACES[channels]


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
    """Sizes of one WAN DiT, and the latents that it denoises."""

    name: str
    blocks: int
    dim: int
    ffn: int
    heads: int
    latents: LatentSpace = LATENTS_21
    extra_channels: int = 0
    """Channels that the DiT takes beside the latents' own, for images and masks."""

    @property
    def input_channels(self) -> int:
        """Channels that the DiT takes in all."""
        return self.latents.channels + self.extra_channels

    @property
    def expert_boundary(self) -> float:
        """Noise level at which the two experts of this variant hand over."""
        return I2V_BOUNDARY if self.input_channels == I2V_CHANNELS else T2V_BOUNDARY

    @property
    def takes_given_latents(self) -> bool:
        """Whether some of the latents may be given to the model, clean and with timestep 0: so TI2V-5B makes
        a video of an image.
        """
        return self.latents is LATENTS_22

    def linear_names(self) -> list[str]:
        """List the native names of all linears that can have an adapter, block by block."""
        return [f"blocks.{i}.{path}" for i in range(self.blocks) for role in Role for path in role.paths]

    def as_variant(self, kind: str, channels: int) -> "WanSpec":
        """Return the spec of a variant with these sizes, named after its class and its input channels."""
        name = f"{self.name.replace('-T2V', '')} ({kind}, {channels} channels)"
        return replace(self, name=name, extra_channels=channels - self.latents.channels)

    def linear_shape(self, name: str) -> tuple[int, int]:
        """Return (out_features, in_features) of a linear, given its native name."""
        role = parse_linear(name).role
        wide = {Role.FFN_0: (self.ffn, self.dim), Role.FFN_2: (self.dim, self.ffn)}
        return wide.get(role, (self.dim, self.dim))


WAN_1_3B = WanSpec("Wan2.1-T2V-1.3B", blocks=30, dim=1536, ffn=8960, heads=12)
WAN_14B = WanSpec("Wan2.1-T2V-14B", blocks=40, dim=5120, ffn=13824, heads=40)
WAN_5B = WanSpec("Wan2.2-TI2V-5B", blocks=30, dim=3072, ffn=14336, heads=24, latents=LATENTS_22)
SPECS = (WAN_1_3B, WAN_14B, WAN_5B)
_NAMES = {LATENTS_21: "Wan2.1-T2V", LATENTS_22: "Wan2.2-TI2V"}


def find_spec(blocks: int, dim: int, ffn: int, heads: int, latents: LatentSpace = LATENTS_21) -> WanSpec:
    """Return the published model of these sizes, or a spec named by its sizes."""
    sizes = (blocks, dim, ffn, heads, latents)
    known = {(spec.blocks, spec.dim, spec.ffn, spec.heads, spec.latents): spec for spec in SPECS}
    return known.get(sizes, WanSpec(f"{_NAMES[latents]} of {blocks} blocks, width {dim}", *sizes))


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


def is_linear(name: str) -> bool:
    """Return whether a native name is of a linear of a transformer block that can have an adapter."""
    match = _LINEAR.match(name)
    return match is not None and match[2] in _ROLE_OF_PATH


def is_linear_weight(name: str) -> bool:
    """Return whether a native name is of the weight of such a linear."""
    return name.endswith(".weight") and is_linear(name.removesuffix(".weight"))


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


def token_grid(latent_shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int]:
    """Return the number of tokens along t, y, x for latents `(..., f, h, w)`.

    Tokens are laid out row-major in that order.
    """
    f, h, w = latent_shape[-3:]
    return f // PATCH[0], h // PATCH[1], w // PATCH[2]
