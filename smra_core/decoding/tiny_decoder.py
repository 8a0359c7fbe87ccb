"""Tiny decoder of WAN's latents, whose weights are those that previews use (TAEHV and its variants).

Written from the architecture: 3x3 convolutions over single frames, and blocks that also see the frame before,
their memory. Previews detach that memory; here its gradient is kept, without which most of the gradient is
lost. The last of three upsamplings is skipped by default, as half of the width and height is enough for flow.

Source of architecture and weights: github:madebyollin/taehv (MIT).
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..storage.weight_check import fill_module
from ..storage.weight_file import read_weight_file
from ..wan.latents import denormalize
from ..wan.spec import LATENT_SPACES, LATENTS_21, TEMPORAL_STRIDE, LatentSpace
from .frozen_layers import convolve_frozen
from .state import DecoderState, StreamingDecoder

log = logging.getLogger("smrabooth")

SCALINGS = ("normalized", "denormalized")
"""Scaling of the latents that a file's decoder takes: the DiT's (taew2_1, taew2_2), or the VAE's own
(lighttaew2_1).
"""
WORST_MATCH = 0.25
"""Mean squared difference to the full decoder, over its variance, above which the two files do not belong
together. A guess: a decoder with the wrong scaling is near or above 1.
"""
_LIMIT = 3.0
"""Limit of the soft clamp of the latents: they stay between minus and plus this."""
_PREFIX = "decoder."


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the one before, with a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            _make_conv(2 * width, width),
            nn.ReLU(),
            _make_conv(width, width),
            nn.ReLU(),
            _make_conv(width, width),
        )

    def forward(self, frames: Tensor, state_before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the output for frames `B T C H W`, and the last frame, which is the new state.

        `state_before` is the frame before, `B 1 C H W`; None stands for zeros, at the start of a clip.
        """
        state_before = torch.zeros_like(frames[:, :1]) if state_before is None else state_before
        memory = torch.cat([state_before, frames[:, :-1]], 1)
        x = torch.cat([frames, memory], 2).flatten(0, 1)
        for index in (0, 2):
            x = F.relu(convolve_frozen(x, self.conv[index]), inplace=True)
        x = convolve_frozen(x, self.conv[4]).unflatten(0, frames.shape[:2])
        return F.relu(x + frames, inplace=True), frames[:, -1:].clone()


class TGrow(nn.Module):
    """1x1 convolution that makes `times` frames of each."""

    def __init__(self, width: int, times: int):
        super().__init__()
        self.conv, self.times = nn.Conv2d(width, width * times, 1, bias=False), times

    def forward(self, frames: Tensor) -> Tensor:
        grown = convolve_frozen(frames.flatten(0, 1), self.conv).unflatten(0, frames.shape[:2])
        return rearrange(grown, "b t (n c) h w -> b (t n) c h w", n=self.times)


class Upsample(nn.Module):
    """Nearest-neighbor upsampling to twice the width and height."""

    def forward(self, frames: Tensor) -> Tensor:
        large = F.interpolate(frames.flatten(0, 1), scale_factor=2, mode="nearest")
        return large.unflatten(0, frames.shape[:2])


class Clamp(nn.Module):
    """Soft clamp, by a tanh."""

    def forward(self, frames: Tensor) -> Tensor:
        return torch.tanh(frames / _LIMIT) * _LIMIT


class FrameConv(nn.Conv2d):
    """3x3 convolution of each frame."""

    def forward(self, frames: Tensor) -> Tensor:
        return convolve_frozen(frames.flatten(0, 1), self).unflatten(0, frames.shape[:2])


class ReLU(nn.Module):
    """ReLU that works on a frozen net's frames `B T C H W`."""

    def forward(self, frames: Tensor) -> Tensor:
        return F.relu(frames)


class TinyDecoder(nn.Module):
    """Tiny decoder with frozen weights, random in a new one (protocol: decoding.state.StreamingDecoder)."""

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (256, 128, 64, 64),
        half_size: bool = True,
        latents: LatentSpace = LATENTS_21,
    ):
        """Build a decoder; `widths` are the channels before each upsampling and at the end."""
        super().__init__()
        self.scaling, self.half_size, self.latents = SCALINGS[0], half_size, latents
        self.decoder = nn.Sequential(*_make_layers(widths, latents.channels, latents.image_channels))
        self.requires_grad_(False)

    def step(self, latents: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Decode latents `B C k h w` in model space to pixels `B 3 n H W`, nominally in [-1, 1] and not
        clamped; return them and the new state.

        State None starts a clip. With half_size, H and W are half of the frame's.
        """
        x = denormalize(latents) if self.scaling == "denormalized" else latents
        x = rearrange(x.to(self.decoder[1].weight), "b c t h w -> b t c h w")
        block_states, new_state = iter(state or ()), []
        for index, layer in enumerate(self.decoder):
            if isinstance(layer, MemoryBlock):
                x, after = layer(x, next(block_states, None))
                new_state.append(after)
            elif not (self.half_size and index == self._last_upsample):
                x = layer(x)
        if state is None:
            x = x[:, TEMPORAL_STRIDE - 1 :]  # a clip's first latent is one frame
        # The channels of a color count along the width first here: a row of the square, then the next.
        side = self.latents.patch
        pixels = rearrange(2 * x - 1, "b t (c p q) h w -> b c t (h p) (w q)", p=side, q=side)
        return pixels, tuple(new_state)

    def finish(self, latents: Tensor, state: DecoderState | None = None) -> Tensor:
        """Return the pixels of `step` alone."""
        return self.step(latents, state)[0]

    @property
    def _last_upsample(self) -> int:
        return max(index for index, layer in enumerate(self.decoder) if isinstance(layer, Upsample))


def _make_layers(widths: tuple[int, int, int, int], inputs: int, outputs: int) -> Iterator[nn.Module]:
    yield from (Clamp(), FrameConv(inputs, widths[0], 3, padding=1), ReLU())
    for width, wider, times in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True):
        yield from (MemoryBlock(width) for _ in range(3))
        yield from (Upsample(), TGrow(width, times), FrameConv(width, wider, 3, padding=1, bias=False))
    yield from (ReLU(), FrameConv(widths[-1], outputs, 3, padding=1))


def _make_conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def load_tiny_decoder(path: Path, latents: LatentSpace, half_size: bool = True) -> TinyDecoder:
    """Load a tiny decoder of these latents from its file, float32, on the CPU; the weights of its encoder are
    ignored.

    ValueError if the file is not readable (see `read_weight_file`), not of this architecture, or made for
    another model's latents. The file does not tell the latents' scaling: see `with_matching_scaling`.
    """
    file = read_weight_file(path)
    tensors = {name: value for name, value in file.tensors.items() if name.startswith(_PREFIX)}
    decoder = TinyDecoder(_find_widths(tensors, path, latents), half_size, latents)
    fill_module(decoder, tensors, str(path))
    log.info("tiny decoder: %s", path.name)
    return decoder


def _find_widths(tensors: dict[str, Tensor], path: Path, latents: LatentSpace) -> tuple[int, int, int, int]:
    first, last = tensors.get("decoder.1.weight"), tensors.get("decoder.22.weight")
    if "decoder.1.conv.1.weight" in tensors:
        raise ValueError(
            f"{path} is a tiny decoder of the larger kind ('super'), whose architecture is another. Choose "
            f"{latents.name_tiny_files()}."
        )
    if first is None or last is None or first.ndim != 4:
        raise ValueError(
            f"{path} is not a tiny video decoder. Choose {latents.name_tiny_files()}, as ComfyUI uses."
        )
    seen, needed = (first.shape[1], last.shape[0]), (latents.channels, latents.image_channels)
    if seen != needed:
        owner = next((other for other in LATENT_SPACES.values() if other.channels == seen[0]), None)
        raise ValueError(
            f"{path} decodes latents of {seen[0]} channels to {seen[1]}"
            + (f", as {owner.name} has them" if owner not in (None, latents) else "")
            + f"; {latents.name} has {needed[0]} and {needed[1]}. Choose {latents.name_tiny_files()}."
        )
    convs = (
        tensors[f"decoder.{index}.weight"] for index in (1, 8, 14, 20) if f"decoder.{index}.weight" in tensors
    )
    widths = tuple(conv.shape[0] for conv in convs)
    if len(widths) != 4:
        raise ValueError(f"{path} has {len(widths)} of 4 widths of a tiny video decoder. Download it again.")
    return widths


@torch.no_grad()
def with_matching_scaling(tiny: TinyDecoder, full: StreamingDecoder, latents: Tensor) -> TinyDecoder:
    """Set the scaling with which the tiny decoder's pixels are nearest to the full one's; return the decoder.

    Both are compared on the first latents of a clip `C f h w`, because files do not tell their scaling, and
    the wrong one gives pictures that are wrong without an error. ValueError if neither scaling comes near.
    """
    first_latents = latents[None, :, :2]
    full_pixels, _ = full.step(first_latents, None)
    errors = {}
    for scaling in SCALINGS:
        tiny.scaling = scaling
        pixels, _ = tiny.step(first_latents, None)
        target = F.adaptive_avg_pool3d(full_pixels.to(pixels), pixels.shape[2:])
        errors[scaling] = ((pixels - target).square().mean() / target.var()).item()
    tiny.scaling = min(errors, key=errors.__getitem__)
    log.info(
        "tiny decoder: %s latents, squared error to the full decoder over its variance %.3f",
        tiny.scaling, errors[tiny.scaling],
    )  # fmt: skip
    if not errors[tiny.scaling] <= WORST_MATCH:
        shown = ", ".join(f"{error:.2f} with {name} latents" for name, error in errors.items())
        raise ValueError(
            f"The tiny decoder's pictures are not the full decoder's: their squared difference over the "
            f"variance is {shown}; at most {WORST_MATCH} is allowed. Choose {tiny.latents.name_tiny_files()} "
            f"for {tiny.latents.name}, or another decode."
        )
    return tiny
