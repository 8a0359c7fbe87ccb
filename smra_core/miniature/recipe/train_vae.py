"""Stage 1: the video VAE, on clips of random textures and tracks."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from torch import Tensor

from ...decoding.fast_conv3d import with_fast_layers
from ..model_files import MINIATURE_FILES
from ..world.random_clips import draw_clip
from ..world.scenes import draw_scene, render
from ..world.sprite import FRAMES, SIZE
from .data_parallel import average_gradients, run_processes
from .latent_space import compute_channel_statistics, fold_statistics
from .stage import Stage, cast_where_fast, schedule_rate
from .whole_clip_vae import decode_clip, encode_moments, initialize

BASE_DIM = 16
KL_WEIGHT = 3e-4
PEAK_RATE = 2e-3
POOL, FRESH = 600, 2
"""Number of clips that each process holds, and of those that it paints anew in every step."""


class Phase(NamedTuple):
    """A part of the stage. Images come first, because motion is learned on top of them."""

    steps: int
    batch: int
    frames: int
    crop: int


PHASES = (Phase(400, 24, 1, 32), Phase(900, 4, 9, 32), Phase(300, 1, FRAMES, SIZE))
IMAGES = Phase(0, 16, 1, 32)
"""Phase of every eighth step among the later phases, so that single frames are not forgotten."""


def build_vae() -> AutoencoderKLWan:
    """Build the untrained VAE."""
    return with_fast_layers(AutoencoderKLWan(base_dim=BASE_DIM, z_dim=16))


def train_vae(build: Path, processes: int = 2, seed: int = 0) -> None:
    """Train the VAE in the build folder; a stage that was interrupted is continued."""
    build.mkdir(parents=True, exist_ok=True)
    run_processes(_run_worker, processes, build, seed)


def _run_worker(rank: int, build: Path, seed: int) -> None:
    torch.manual_seed(seed)
    vae = build_vae()
    initialize(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
    stage = Stage("vae", build, sum(phase.steps for phase in PHASES))
    done = stage.resume({"vae": vae, "optimizer": optimizer})
    generator = torch.Generator().manual_seed(seed * 1000 + 10 * done + rank)
    pool = torch.stack([draw_clip(generator).frames for _ in range(POOL)])
    held = torch.stack([draw_clip(torch.Generator().manual_seed(9 + i)).frames for i in range(6)])
    for step in range(done, stage.steps):
        for _ in range(FRESH):
            pool[int(torch.randint(POOL, (), generator=generator))] = draw_clip(generator).frames
        for group in optimizer.param_groups:
            group["lr"] = schedule_rate(PEAK_RATE, step, stage.steps)
        pixels = _draw_crops(pool, find_phase(step), generator)
        loss, error = _compute_losses(vae, pixels, generator)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if rank == 0 and (step + 1) % stage.report_every == 0:
            stage.report(step + 1, train_psnr=convert_to_psnr(error), psnr=_measure_psnr(vae, held))
        if rank == 0:
            stage.save(step + 1, {"vae": vae, "optimizer": optimizer})
    dist.barrier()


def find_phase(step: int) -> Phase:
    """Return the phase of a step; ValueError beyond the last one."""
    start = 0
    for phase in PHASES:
        if step < start + phase.steps:
            return IMAGES if phase.frames > 1 and step % 8 == 0 else phase
        start += phase.steps
    raise ValueError(
        f"Step {step} is past the end of the stage, which has {start} steps. Give one from 0 to {start - 1}."
    )


def _draw_crops(pool: Tensor, phase: Phase, generator: torch.Generator) -> Tensor:
    """Cut pixels `B 3 F H W` in [-1, 1] from random clips, at random places and times."""

    def draw_below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    def cut_clip() -> Tensor:
        t, y, x = (
            draw_below(FRAMES - phase.frames + 1),
            draw_below(SIZE - phase.crop + 1),
            draw_below(SIZE - phase.crop + 1),
        )
        return pool[draw_below(len(pool)), t : t + phase.frames, :, y : y + phase.crop, x : x + phase.crop]

    return torch.stack([cut_clip() for _ in range(phase.batch)]).transpose(1, 2) * 2 - 1


def _compute_losses(
    vae: AutoencoderKLWan, pixels: Tensor, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Return the loss and the mean squared error of the reconstruction, for pixels `B 3 F H W` in [-1, 1]."""
    with cast_where_fast():
        mean, log_variance = (part.float() for part in encode_moments(vae, pixels))
        log_variance = log_variance.clamp(-12, 4)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = decode_clip(vae, mean + noise * (0.5 * log_variance).exp())
    difference = decoded.float() - pixels
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    squared = (difference**2).mean()
    return difference.abs().mean() + squared + KL_WEIGHT * divergence, squared.item()


@torch.no_grad()
def _measure_psnr(vae: AutoencoderKLWan, frames: Tensor) -> float:
    """Return the mean PSNR in decibels of reconstructed clips `B F 3 H W` in [0, 1]."""
    pixels = frames.transpose(1, 2) * 2 - 1
    with cast_where_fast():
        back = torch.cat([decode_clip(vae, encode_moments(vae, clip[None])[0]) for clip in pixels])
    errors = ((back.float().clamp(-1, 1) - pixels) ** 2).mean((1, 2, 3, 4))
    return sum(convert_to_psnr(error) for error in errors.tolist()) / len(errors)


def convert_to_psnr(squared_error: float) -> float:
    """Return the PSNR in decibels of a mean squared error of pixels in [-1, 1]."""
    return 10 * math.log10(4 / squared_error)


def load_trained_vae(build: Path) -> AutoencoderKLWan:
    """Load the VAE of stage 1 and fold WAN's latent statistics in; where none was trained, load the shipped
    one.
    """
    if not (build / "vae.pt").is_file():
        return MINIATURE_FILES.load_codec(torch.float32, torch.device("cpu")).vae
    state = torch.load(build / "vae.pt", weights_only=True)
    vae = build_vae().eval().requires_grad_(False)
    vae.load_state_dict(state["vae"])
    generator = torch.Generator().manual_seed(1)
    clips = torch.stack([render(draw_scene(generator)).frames for _ in range(64)])
    with torch.no_grad(), cast_where_fast():
        means = torch.cat([encode_moments(vae, c.transpose(1, 2) * 2 - 1)[0] for c in clips.split(4)])
    fold_statistics(vae, *compute_channel_statistics(means.float()))
    return vae
