"""A tiny decoder of WAN 2.1's latents, after the file of weights that previews use (TAEHV and its kin).

Written from the architecture: 3x3 convolutions over single frames, and blocks that also see the frame before,
their memory. Previews detach that memory; here it carries its gradient, without which most of the gradient is
lost. The last of three enlargements is left out by default: half the pixels a side are enough for flow.

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
from ..wan.spec import LATENT_CHANNELS, TEMPORAL_STRIDE
from .frozen_layers import frozen_conv
from .state import DecoderState, StreamingDecoder

log = logging.getLogger("smrabooth")

SCALINGS = ("whitened", "denormalize")
"""Latents as the DiT has them (taew2_1), or as WAN's VAE has them (lighttaew2_1)."""
WORST_MATCH = 0.25
"""Mean squared difference to the full decoder, over its variance, above which the files do not belong
together. A guess: a decoder with the wrong scaling is near or above 1.
"""
_REACH = 3.0
"""Latents are softly held between minus and plus this."""
_PREFIX = "decoder."


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the one before, beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, frames: Tensor, state_before: Tensor | None) -> tuple[Tensor, Tensor]:
        """`B T C H W`, and the frame before, `B 1 C H W`, black at a clip's start; the output, and the last
        frame.
        """
        state_before = torch.zeros_like(frames[:, :1]) if state_before is None else state_before
        memory = torch.cat([state_before, frames[:, :-1]], 1)
        x = torch.cat([frames, memory], 2).flatten(0, 1)
        for index in (0, 2):
            x = F.relu(frozen_conv(x, self.conv[index]), inplace=True)
        x = frozen_conv(x, self.conv[4]).unflatten(0, frames.shape[:2])
        return F.relu(x + frames, inplace=True), frames[:, -1:].clone()


class TGrow(nn.Module):
    """One frame becomes `times`."""

    def __init__(self, width: int, times: int):
        super().__init__()
        self.conv, self.times = nn.Conv2d(width, width * times, 1, bias=False), times

    def forward(self, frames: Tensor) -> Tensor:
        grown = frozen_conv(frames.flatten(0, 1), self.conv).unflatten(0, frames.shape[:2])
        return rearrange(grown, "b t (n c) h w -> b (t n) c h w", n=self.times)


class Upsample(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        large = F.interpolate(frames.flatten(0, 1), scale_factor=2, mode="nearest")
        return large.unflatten(0, frames.shape[:2])


class Clamp(nn.Module):
    """A soft clamp."""

    def forward(self, frames: Tensor) -> Tensor:
        return torch.tanh(frames / _REACH) * _REACH


class FrameConv(nn.Conv2d):
    """A 3x3 convolution of each frame."""

    def forward(self, frames: Tensor) -> Tensor:
        return frozen_conv(frames.flatten(0, 1), self).unflatten(0, frames.shape[:2])


class ReLU(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return F.relu(frames)


class TinyDecoder(nn.Module):
    """Frozen (protocol: decoding.state.StreamingDecoder). New ones have random weights."""

    def __init__(self, widths: tuple[int, int, int, int] = (256, 128, 64, 64), half_size: bool = True):
        """`widths` before each enlargement and at the end."""
        super().__init__()
        self.scaling, self.half_size = SCALINGS[0], half_size
        self.decoder = nn.Sequential(*_layers(widths))
        self.requires_grad_(False)

    def step(self, latents: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Pixels `B 3 n H W`, nominally in [-1, 1] and not clamped, of latents `B 16 k h w` in model space,
        and what they leave; past None starts a clip. H and W are half the frame's when half_size.
        """
        x = denormalize(latents) if self.scaling == "denormalize" else latents
        x = rearrange(x.to(self.decoder[1].weight), "b c t h w -> b t c h w")
        state_before, after = iter(state or ()), []
        for index, layer in enumerate(self.decoder):
            if isinstance(layer, MemoryBlock):
                x, next_state = layer(x, next(state_before, None))
                after.append(next_state)
            elif not (self.half_size and index == self._last_enlarge):
                x = layer(x)
        if state is None:
            x = x[:, TEMPORAL_STRIDE - 1 :]  # a clip's first latent is one frame
        return rearrange(2 * x - 1, "b t c h w -> b c t h w"), tuple(after)

    def end(self, latents: Tensor, state: DecoderState | None = None) -> Tensor:
        """The pixels of `step` alone."""
        return self.step(latents, state)[0]

    @property
    def _last_enlarge(self) -> int:
        return max(index for index, layer in enumerate(self.decoder) if isinstance(layer, Upsample))


def _layers(widths: tuple[int, int, int, int]) -> Iterator[nn.Module]:
    yield from (Clamp(), FrameConv(LATENT_CHANNELS, widths[0], 3, padding=1), ReLU())
    for width, wider, times in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True):
        yield from (MemoryBlock(width) for _ in range(3))
        yield from (Upsample(), TGrow(width, times), FrameConv(width, wider, 3, padding=1, bias=False))
    yield from (ReLU(), FrameConv(widths[-1], 3, 3, padding=1))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def load_tiny_decoder(path: Path, half_size: bool = True) -> TinyDecoder:
    """A tiny decoder from its file, float32, on the CPU; weights of its encoder are passed over.

    ValueError if the file is not readable (see `read_weight_file`), not of this architecture, or for another
    model's latents. Its latents' scaling is not in the file: see `with_matching_scaling`.
    """
    file = read_weight_file(path)
    tensors = {name: value for name, value in file.tensors.items() if name.startswith(_PREFIX)}
    decoder = TinyDecoder(_widths(tensors, path), half_size)
    fill_module(decoder, tensors, str(path))
    log.info("tiny decoder: %s", path.name)
    return decoder


def _widths(tensors: dict[str, Tensor], path: Path) -> tuple[int, int, int, int]:
    first, last = tensors.get("decoder.1.weight"), tensors.get("decoder.22.weight")
    if first is None or last is None or first.ndim != 4:
        raise ValueError(
            f"{path} is not a tiny video decoder. Choose lighttaew2_1 or taew2_1, as ComfyUI uses."
        )
    if first.shape[1] != LATENT_CHANNELS or last.shape[0] != 3:
        raise ValueError(
            f"{path} decodes latents of {first.shape[1]} channels to {last.shape[0]}; WAN 2.1 has "
            f"{LATENT_CHANNELS} and 3. Choose lighttaew2_1 or taew2_1."
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
    """Set the scaling with which the tiny decoder says what the full one says of latents `16 f h w`.

    Files do not tell which they want, and the wrong one gives a picture that is merely wrong. ValueError when
    neither comes near.
    """
    some = latents[None, :, :2]
    pixels, _ = full.step(some, None)
    misses = {}
    for scaling in SCALINGS:
        tiny.scaling = scaling
        grad_x, _ = tiny.step(some, None)
        target = F.adaptive_avg_pool3d(pixels.to(grad_x), grad_x.shape[2:])
        misses[scaling] = ((grad_x - target).square().mean() / target.var()).item()
    tiny.scaling = min(misses, key=misses.__getitem__)
    log.info("tiny decoder: %s latents, %.3f off the full decoder", tiny.scaling, misses[tiny.scaling])
    if not misses[tiny.scaling] <= WORST_MATCH:
        shown = ", ".join(f"{miss:.2f} with {name} latents" for name, miss in misses.items())
        raise ValueError(
            f"The tiny decoder's pictures are not the full decoder's: their squared difference over the "
            f"variance is {shown}, and {WORST_MATCH} is the most that is taken. Choose lighttaew2_1 or "
            "taew2_1 for WAN 2.1, or another decode."
        )
    return tiny
