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
from ..world.random_clips import random_clip
from ..world.scenes import random_scene, render
from ..world.sprite import FRAMES, SIZE
from .data_parallel import average_gradients, run_processes
from .latent_space import compute_channel_statistics, fold_statistics
from .stage import Stage, bfloat16_where_fast, cosine_rate
from .whole_clip_vae import decode_clip, encode_moments, initialize

BASE_DIM = 16
KL_WEIGHT = 3e-4
PEAK_RATE = 2e-3
POOL, FRESH = 600, 2
"""Clips kept at hand by each process, and how many of them are painted anew in every step."""


class Phase(NamedTuple):
    """A part of the stage: images first, as motion is learned on top of them."""

    steps: int
    batch: int
    frames: int
    crop: int


PHASES = (Phase(400, 24, 1, 32), Phase(900, 4, 9, 32), Phase(300, 1, FRAMES, SIZE))
IMAGES = Phase(0, 16, 1, 32)
"""Every eighth step of the later phases, so that single frames are not forgotten."""


def new_vae() -> AutoencoderKLWan:
    return with_fast_layers(AutoencoderKLWan(base_dim=BASE_DIM, z_dim=16))


def train_vae(build: Path, processes: int = 2, seed: int = 0) -> None:
    """Train, or go on training, the VAE in the build folder."""
    build.mkdir(parents=True, exist_ok=True)
    run_processes(_worker, processes, build, seed)


def _worker(rank: int, build: Path, seed: int) -> None:
    torch.manual_seed(seed)
    vae = new_vae()
    initialize(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
    stage = Stage("vae", build, sum(phase.steps for phase in PHASES))
    done = stage.resume({"vae": vae, "optimizer": optimizer})
    generator = torch.Generator().manual_seed(seed * 1000 + 10 * done + rank)
    pool = torch.stack([random_clip(generator).frames for _ in range(POOL)])
    held = torch.stack([random_clip(torch.Generator().manual_seed(9 + i)).frames for i in range(6)])
    for step in stage.remaining(done):
        for _ in range(FRESH):
            pool[int(torch.randint(POOL, (), generator=generator))] = random_clip(generator).frames
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(PEAK_RATE, step, stage.steps)
        pixels = _crops(pool, phase_of(step), generator)
        loss, error = _losses(vae, pixels, generator)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if rank == 0 and (step + 1) % stage.report_every == 0:
            stage.report(step + 1, train_psnr=psnr(error), psnr=_held_psnr(vae, held))
        if rank == 0:
            stage.keep(step + 1, {"vae": vae, "optimizer": optimizer})
    dist.barrier()


def phase_of(step: int) -> Phase:
    start = 0
    for phase in PHASES:
        if step < start + phase.steps:
            return IMAGES if phase.frames > 1 and step % 8 == 0 else phase
        start += phase.steps
    raise ValueError(f"Step {step} is past the end of the stage ({start} steps).")


def _crops(pool: Tensor, phase: Phase, generator: torch.Generator) -> Tensor:
    """`B 3 F H W` in [-1, 1], cut from random clips at random places and times."""

    def below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    def cut() -> Tensor:
        t, y, x = below(FRAMES - phase.frames + 1), below(SIZE - phase.crop + 1), below(SIZE - phase.crop + 1)
        return pool[below(len(pool)), t : t + phase.frames, :, y : y + phase.crop, x : x + phase.crop]

    return torch.stack([cut() for _ in range(phase.batch)]).transpose(1, 2) * 2 - 1


def _losses(vae: AutoencoderKLWan, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    with bfloat16_where_fast():
        mean, log_variance = (part.float() for part in encode_moments(vae, pixels))
        log_variance = log_variance.clamp(-12, 4)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = decode_clip(vae, mean + noise * (0.5 * log_variance).exp())
    difference = decoded.float() - pixels
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    squared = (difference**2).mean()
    return difference.abs().mean() + squared + KL_WEIGHT * divergence, squared.item()


@torch.no_grad()
def _held_psnr(vae: AutoencoderKLWan, frames: Tensor) -> float:
    pixels = frames.transpose(1, 2) * 2 - 1
    with bfloat16_where_fast():
        back = torch.cat([decode_clip(vae, encode_moments(vae, clip[None])[0]) for clip in pixels])
    errors = ((back.float().clamp(-1, 1) - pixels) ** 2).mean((1, 2, 3, 4))
    return sum(psnr(error) for error in errors.tolist()) / len(errors)


def psnr(squared_error: float) -> float:
    """Decibels, for pixels in [-1, 1]."""
    return 10 * math.log10(4 / squared_error)


def trained_vae(build: Path) -> AutoencoderKLWan:
    """The VAE of stage 1 with WAN's latent statistics folded in; the shipped one where none was trained."""
    if not (build / "vae.pt").is_file():
        return MINIATURE_FILES.load_codec(torch.float32, torch.device("cpu")).vae
    state = torch.load(build / "vae.pt", weights_only=True)
    vae = new_vae().eval().requires_grad_(False)
    vae.load_state_dict(state["vae"])
    generator = torch.Generator().manual_seed(1)
    clips = torch.stack([render(random_scene(generator)).frames for _ in range(64)])
    with torch.no_grad(), bfloat16_where_fast():
        means = torch.cat([encode_moments(vae, c.transpose(1, 2) * 2 - 1)[0] for c in clips.split(4)])
    fold_statistics(vae, *compute_channel_statistics(means.float()))
    return vae
