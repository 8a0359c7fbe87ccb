"""Stage 2: the DiT, by flow matching on the latents of the world's clips and of their first frames."""

from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...wan.flow_matching import add_noise, shift_sigma, velocity_target
from ...wan.hashed_text import HashedText
from ...wan.spec import TEXT_DIM, TIMESTEPS
from ..world.scenes import Scene, draw_scene, render
from .data_parallel import average_gradients, gather, run_processes
from .latent_space import encode_frames
from .stage import Stage, cast_where_fast, schedule_rate
from .train_vae import load_trained_vae

HEADS, HEAD_DIM, FFN, BLOCKS = 2, 128, 1024, 4
CLIPS = 3200
STEPS, BATCH, PICTURE_BATCH = 3400, 16, 32
PICTURE_EVERY = 6
"""Interval in steps between batches of single frames, so that subjects given as images are in distribution.
"""
PEAK_RATE, EMA = 1.5e-3, 0.999
SHIFT = 3.0
NO_TEXT = 0.1
"""Share of the captions that are left out, for classifier-free guidance."""


def build_dit() -> WanTransformer3DModel:
    """Build the untrained DiT."""
    return WanTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, in_channels=16, out_channels=16,
        text_dim=TEXT_DIM, freq_dim=256, ffn_dim=FFN, num_layers=BLOCKS,
    )  # fmt: skip


def train_dit(build: Path, processes: int = 2, seed: int = 0) -> None:
    """Train the DiT in the build folder; a stage that was interrupted is continued.

    Uses the VAE of the build folder, or the shipped one where none was trained.
    """
    run_processes(_run_worker, processes, build, seed)


def load_trained_dit(build: Path) -> WanTransformer3DModel:
    """Load the averaged DiT of stage 2, as far as it is trained."""
    state = torch.load(build / "dit.pt", weights_only=True)
    averaged = AveragedModel(build_dit())
    averaged.load_state_dict(state["averaged"])
    return averaged.module.eval().requires_grad_(False)


def _run_worker(rank: int, build: Path, seed: int) -> None:
    scenes, latents = _encode_clips(rank, build, seed)
    torch.manual_seed(seed)
    dit = build_dit()
    torch.nn.init.zeros_(dit.proj_out.weight)
    averaged = AveragedModel(dit, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.AdamW(dit.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    stage = Stage("dit", build, STEPS)
    parts = {"dit": dit, "averaged": averaged, "optimizer": optimizer}
    done = stage.resume(parts)
    losses: list[float] = []
    for step in range(done, stage.steps):
        generator = torch.Generator().manual_seed((seed * STEPS + step) * 100 + rank)
        for group in optimizer.param_groups:
            group["lr"] = schedule_rate(PEAK_RATE, step, STEPS, warmup=200)
        loss = _compute_loss(dit, *_draw_batch(scenes, latents, step, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(dit.parameters())
        torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(dit)
        losses.append(loss.item())
        if rank == 0:
            if (step + 1) % stage.report_every == 0:
                stage.report(step + 1, loss=sum(losses) / len(losses))
                losses.clear()
            stage.save(step + 1, parts)
    dist.barrier()


def _encode_clips(rank: int, build: Path, seed: int) -> tuple[list[Scene], Tensor]:
    """Return the scenes to train on and their latents `N 16 f h w`; every process encodes its share."""
    generator = torch.Generator().manual_seed(seed)
    scenes = [draw_scene(generator) for _ in range(CLIPS)]
    latents_file = build / "dit_latents.pt"
    if latents_file.is_file():
        return scenes, torch.load(latents_file, weights_only=True)
    vae, share = load_trained_vae(build), CLIPS // dist.get_world_size()
    own_scenes = scenes[rank * share : (rank + 1) * share]
    with torch.no_grad(), cast_where_fast():
        encoded = [encode_frames(vae, render(scene).frames[None]) for scene in own_scenes]
    latents = gather(torch.cat(encoded))
    if rank == 0:
        torch.save(latents, latents_file)
    return scenes[: len(latents)], latents


def _draw_batch(
    scenes: list[Scene], latents: Tensor, step: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return latents and text context of clips, or of first frames: latent 0 of a causal VAE is frame 0
    alone.
    """
    picture = step % PICTURE_EVERY == 0
    size = PICTURE_BATCH if picture else BATCH
    chosen = torch.randint(len(scenes), (size,), generator=generator)
    captions = [scenes[i].picture_prompt if picture else scenes[i].prompt for i in chosen]
    dropped = torch.rand(size, generator=generator) < NO_TEXT
    context = HashedText().encode(
        ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
    )
    return latents[chosen][:, :, :1] if picture else latents[chosen], context


def _compute_loss(
    dit: WanTransformer3DModel, x0: Tensor, context: Tensor, generator: torch.Generator
) -> Tensor:
    # Noise levels are spread evenly over the batch, which halves the noise of the gradient.
    even = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)
    sigma = shift_sigma(even.clamp_min(1e-3), SHIFT)
    noise = torch.randn(x0.shape, generator=generator)
    with cast_where_fast():
        velocity = dit(add_noise(x0, noise, sigma), sigma * TIMESTEPS, context, return_dict=False)[0]
    return ((velocity.float() - velocity_target(x0, noise)) ** 2).mean()
