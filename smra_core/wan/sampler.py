"""Flow-matching sampler: Euler or Heun steps with classifier-free guidance."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .interfaces import Denoiser
from .settings import COUNT, FINITE, POSITIVE, SEED, Limits, check_limits, declare_setting
from .spec import LATENTS_21, LATENTS_22, LatentSpace, latent_frames


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of a sampling run.

    The defaults are the paper's: 50 Euler steps, shift 1, guidance 5, 49 frames of 832x480 at 15 frames per
    second.
    """

    steps: int = declare_setting(50, "Denoising steps. More take more time and give finer results.", COUNT)
    shift: float = declare_setting(
        1.0, "Shift of the noise levels. Above 1, more steps are spent at high noise.", POSITIVE
    )
    guidance: float = declare_setting(
        5.0,
        "Classifier-free guidance. Higher follows the prompt more closely; 1 turns it off and takes half "
        "the time.",
        FINITE,
    )
    width: int = declare_setting(832, "Width of the video in pixels, a multiple of 16 (of 32 for TI2V-5B).")
    height: int = declare_setting(480, "Height of the video in pixels, a multiple of 16 (of 32 for TI2V-5B).")
    frames: int = declare_setting(49, "Frames of the video, 4n+1.")
    fps: int = declare_setting(
        15,
        f"Frames per second of the video file. Not given, a video of TI2V-5B has its own {LATENTS_22.fps:g}.",
        Limits(most=1000, above=0),
    )
    seed: int = declare_setting(0, "Random seed. Another seed gives another video.", SEED)
    sampler: str = declare_setting("euler", "euler, or heun with two evaluations of the model in each step.")

    def __post_init__(self):
        check_limits(self)
        LATENTS_21.check_size(self.width, self.height)
        latent_frames(self.frames)
        if self.sampler not in SAMPLERS:
            raise ValueError(f"Sampler {self.sampler!r} is not known; give one of {sorted(SAMPLERS)}.")


def initial_noise(settings: SamplingSettings, latents: LatentSpace, batch: int = 1) -> Tensor:
    """Draw noise `B C f h w`; the noise of video i depends only on seed + i, not on the batch size."""
    shape = latents.latent_shape(settings.frames, settings.width, settings.height)
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
    sampler: str = "euler",
    on_step: Callable[[int, int], None] | None = None,
    on_evaluation: Callable[[float], None] | None = None,
    on_prediction: Callable[[float, Tensor], None] | None = None,
) -> Tensor:
    """Denoise `start` (`B C f h w`, at noise level sigmas[0]) to sigmas[-1]; return latents in model space.

    `context` and `negative` are `B T 4096`; with guidance 1 the model is evaluated on `context` alone.
    `on_evaluation` is called with the sigma before each evaluation of the model, also inside a Heun step;
    `on_prediction` after each with the sigma and the clean latents that it predicts, `B C f h w`;
    `on_step` is called after each step with its number and the number of all steps.
    """
    levels = sigmas.tolist()

    def velocity(latents: Tensor, sigma: float) -> Tensor:
        if on_evaluation is not None:
            on_evaluation(sigma)
        predicted = guided_velocity(denoiser, latents, sigma, context, negative, guidance)
        if on_prediction is not None:
            on_prediction(sigma, latents - sigma * predicted)
        return predicted

    latents = start
    for step, (sigma, following) in enumerate(zip(levels, levels[1:], strict=False), start=1):
        latents = SAMPLERS[sampler](velocity, latents, sigma, following)
        if on_step is not None:
            on_step(step, len(levels) - 1)
    return latents


def guided_velocity(
    denoiser: Denoiser, latents: Tensor, sigma: float, context: Tensor, negative: Tensor, guidance: float
) -> Tensor:
    """Return the velocity with classifier-free guidance: negative + guidance (positive - negative)."""
    level = latents.new_full((len(latents),), sigma, dtype=torch.float32)
    if guidance == 1.0:
        return denoiser.velocity(latents, level, context).velocity
    both = denoiser.velocity(
        torch.cat([latents, latents]), torch.cat([level, level]), torch.cat([context, negative])
    ).velocity
    positive, negative_velocity = both.chunk(2)
    return negative_velocity + guidance * (positive - negative_velocity)


def euler_step(velocity, latents: Tensor, sigma: float, following: float) -> Tensor:
    """Take one step with one evaluation, straight to the next level (the paper's "DDIM" for a flow model)."""
    return latents + (following - sigma) * velocity(latents, sigma)


def heun_step(velocity, latents: Tensor, sigma: float, following: float) -> Tensor:
    """Take one step with two evaluations, one at each end; the last step, to sigma 0, needs only one."""
    first = velocity(latents, sigma)
    euler = latents + (following - sigma) * first
    if following == 0:
        return euler
    return latents + (following - sigma) * (first + velocity(euler, following)) / 2


SAMPLERS = {"euler": euler_step, "heun": heun_step}
"""Step functions by the sampler's name."""
