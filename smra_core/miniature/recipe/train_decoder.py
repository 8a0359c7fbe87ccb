"""Stage 2: the VAE's decoder once more, with the encoder held, for sharper pictures.

The latents stay what they are, so that a DiT, LoRAs and latents made before go on with the new file.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from ..world.measure import find_sprite
from ..world.random_clips import draw_clip
from ..world.random_parts import draw_parts_clip
from .stage import Stage, cast_where_fast, schedule_rate
from .train_vae import load_trained_vae, measure_psnr
from .whole_clip_vae import decode_clip, encode_moments

STEPS, BATCH = 400, 2
PEAK_RATE = 4e-4
SPRITE_WEIGHT = 4.0
"""Weight of the sprite and its edge, in addition to the 1 of every pixel: most of a clip is background."""
EDGE_WEIGHT = 1.0
"""Weight of the error of the differences between neighboring pixels, which blurred edges have."""


def train_decoder(build: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Train the decoder of the build folder's VAE, or of the shipped one where none was trained.

    A stage that was interrupted is continued.
    """
    build.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    vae = load_trained_vae(build)
    decoder = list_decoder(vae)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    stage = Stage("decoder", build, steps)
    parts = {"decoder": decoder, "optimizer": optimizer}
    held = torch.stack(list(_draw_clips(torch.Generator().manual_seed(9), 6)))
    losses: list[float] = []
    for step in range(stage.resume(parts), stage.steps):
        generator = torch.Generator().manual_seed(seed * STEPS + step + 1)
        for group in optimizer.param_groups:
            group["lr"] = schedule_rate(PEAK_RATE, step, stage.steps)
        loss = _compute_loss(vae, torch.stack(list(_draw_clips(generator, BATCH))), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % stage.report_every == 0:
            stage.report(step + 1, loss=sum(losses) / len(losses), psnr=measure_psnr(vae, held))
            losses.clear()
        stage.save(step + 1, parts)


def list_decoder(vae: AutoencoderKLWan) -> nn.ModuleDict:
    """Return the parts of a VAE after its latents, with gradients on; the rest is held."""
    vae.requires_grad_(False)
    decoder = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})
    return decoder.requires_grad_(True)


def load_trained_decoder(build: Path) -> AutoencoderKLWan:
    """Load the VAE of the build folder with the decoder of this stage, as far as it is trained."""
    vae = load_trained_vae(build)
    if (build / "decoder.pt").is_file():
        list_decoder(vae).load_state_dict(torch.load(build / "decoder.pt", weights_only=True)["decoder"])
    return vae.requires_grad_(False)


def _draw_clips(generator: torch.Generator, count: int) -> Iterable[Tensor]:
    """Draw clips `F 3 H W` in [0, 1]: in turn one sprite, and a thing of several parts."""
    for index in range(count):
        yield draw_parts_clip(generator) if index % 2 else draw_clip(generator).frames


def _compute_loss(vae: AutoencoderKLWan, frames: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss of the reconstruction of clips `B F 3 H W` in [0, 1]."""
    pixels = frames.transpose(1, 2) * 2 - 1
    with torch.no_grad(), cast_where_fast():
        mean, log_variance = (part.float() for part in encode_moments(vae, pixels))
    noise = torch.randn(mean.shape, generator=generator)
    with cast_where_fast():
        decoded = decode_clip(vae, mean + noise * (0.5 * log_variance).exp()).float()
    weight = torch.stack([weigh_sprite(clip) for clip in frames])[:, None]
    return average_error(decoded - pixels, weight)


def weigh_sprite(frames: Tensor) -> Tensor:
    """Return the weight `F H W` of each pixel of frames `F 3 H W` in [0, 1], with a mean of 1."""
    near = F.max_pool2d(find_sprite(frames)[:, None], 5, stride=1, padding=2)[:, 0]
    weight = 1 + SPRITE_WEIGHT * near
    return weight / weight.mean()


def average_error(difference: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of the absolute differences `B 3 F H W`, and of those between neighboring
    pixels.
    """
    error = (difference.abs() * weight).mean()
    for axis in (-1, -2):
        edges = difference.diff(dim=axis).abs() * weight.narrow(axis, 1, weight.shape[axis] - 1)
        error = error + EDGE_WEIGHT * edges.mean()
    return error
