"""Headless flow-matching sampler: Euler or Heun steps with sparse LoRAs whose strengths switch at T_point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.adapter import Injection, Lora, injected
from ..lora.plan import Strengths, TPointSchedule
from .interfaces import Denoiser
from .spec import LATENT_CHANNELS, SPATIAL_STRIDE, check_size, latent_frames


@dataclass(frozen=True)
class SamplingSettings:
    """The paper's run: 50 Euler steps, shift 1, guidance 5, 49 frames of 832x480 at 15 frames a second."""

    steps: int = 50
    shift: float = 1.0
    guidance: float = 5.0
    width: int = 832
    height: int = 480
    frames: int = 49
    fps: int = 15
    seed: int = 0
    sampler: str = "euler"
    denoise: float = 1.0

    def __post_init__(self):
        check_size(self.width, self.height)
        latent_frames(self.frames)
        if self.sampler not in SAMPLERS:
            raise ValueError(f"Sampler {self.sampler!r} is not known; give one of {sorted(SAMPLERS)}.")

    def latent_shape(self) -> tuple[int, int, int, int]:
        return (
            LATENT_CHANNELS,
            latent_frames(self.frames),
            self.height // SPATIAL_STRIDE,
            self.width // SPATIAL_STRIDE,
        )


class ScheduledLora(NamedTuple):
    """A LoRA and its strengths on both sides of T_point."""

    lora: Lora
    strengths: Strengths


class Evaluation(NamedTuple):
    """One call of the model while sampling."""

    sigma: float
    strengths: tuple[float, ...]
    """Of each LoRA, in the order given."""


def initial_noise(settings: SamplingSettings, batch: int = 1) -> Tensor:
    """Noise `B 16 f h w`; video i depends on seed + i alone, whatever the batch."""
    shape = settings.latent_shape()
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed + i)) for i in range(batch)]
    )


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    start: Tensor,
    sigmas: Tensor,
    context: Tensor,
    negative: Tensor,
    guidance: float = 5.0,
    loras: Sequence[ScheduledLora] = (),
    t_point: TPointSchedule | None = None,
    sampler: str = "euler",
    on_step: Callable[[int, int], None] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> Tensor:
    """Denoise `start` (`B 16 f h w`, at noise level sigmas[0]) down the noise levels; returns latents in
    model space.

    `context` and `negative` are `B T 4096`; guidance 1 evaluates the model on `context` alone. Before each
    evaluation every LoRA gets the strength that `t_point` gives it at that evaluation's own sigma, also
    inside a two-evaluation step. The model is left as found, whatever happens.
    """
    levels = sigmas.tolist()
    schedule = t_point or TPointSchedule()
    injections = [Injection(lora, strengths.early) for lora, strengths in loras]

    def velocity(latents: Tensor, sigma: float) -> Tensor:
        for injection, (_, strengths) in zip(injections, loras, strict=True):
            injection.strength = schedule.strength(strengths, sigma, levels)
        if on_evaluation is not None:
            on_evaluation(Evaluation(sigma, tuple(injection.strength for injection in injections)))
        return guided_velocity(denoiser, latents, sigma, context, negative, guidance)

    latents = start
    with injected(denoiser.linears(), *injections):
        for step, (sigma, following) in enumerate(zip(levels, levels[1:], strict=False), start=1):
            latents = SAMPLERS[sampler](velocity, latents, sigma, following)
            if on_step is not None:
                on_step(step, len(levels) - 1)
    return latents


def guided_velocity(
    denoiser: Denoiser, latents: Tensor, sigma: float, context: Tensor, negative: Tensor, guidance: float
) -> Tensor:
    """Classifier-free guidance: negative + guidance (positive - negative)."""
    level = latents.new_full((len(latents),), sigma, dtype=torch.float32)
    if guidance == 1.0:
        return denoiser.velocity(latents, level, context).velocity
    both = denoiser.velocity(
        torch.cat([latents, latents]), torch.cat([level, level]), torch.cat([context, negative])
    ).velocity
    positive, unguided = both.chunk(2)
    return unguided + guidance * (positive - unguided)


def euler_step(velocity, latents: Tensor, sigma: float, following: float) -> Tensor:
    """One evaluation, straight to the next level (the paper's "DDIM" for a flow model)."""
    return latents + (following - sigma) * velocity(latents, sigma)


def heun_step(velocity, latents: Tensor, sigma: float, following: float) -> Tensor:
    """Two evaluations, at both ends of the step; the last step, to sigma 0, needs only one."""
    first = velocity(latents, sigma)
    guess = latents + (following - sigma) * first
    if following == 0:
        return guess
    return latents + (following - sigma) * (first + velocity(guess, following)) / 2


SAMPLERS = {"euler": euler_step, "heun": heun_step}
