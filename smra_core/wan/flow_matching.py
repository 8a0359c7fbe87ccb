"""Flow matching as WAN uses it: straight paths from clean latents (sigma 0) to noise (sigma 1).

`x_t = (1 - sigma) x0 + sigma noise`, the model predicts the velocity `noise - x0`, and gets the timestep
`1000 sigma` as its input. Shapes are `B 16 f h w` for latents and `B` for sigmas.
"""

import torch
from torch import Tensor

from .spec import TIMESTEPS


def expand_per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape `B` values so that they broadcast over `like` of shape `B ...`, in its dtype."""
    return sigma.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the point on the path at noise level sigma: `(1 - sigma) x0 + sigma noise`."""
    s = expand_per_sample(sigma, x0)
    return (1 - s) * x0 + s * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity `noise - x0` that the model should predict anywhere on the path."""
    return noise - x0


def x0_from_velocity(noisy: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean latents `x_t - sigma v` that a predicted velocity points to, with its gradient."""
    return noisy - expand_per_sample(sigma, noisy) * velocity


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels toward 1 (shift > 1): `shift s / (1 + (shift - 1) s)`; shift 1 changes nothing."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_training_sigma(batch: int, generator: torch.Generator, shift: float = 1.0) -> Tensor:
    """Draw random noise levels in (0, 1], float32 `B`; uniform at shift 1, which the authors train with."""
    uniform = 1 - torch.rand(batch, generator=generator)  # rand is in [0, 1); sigma 0 would give no signal
    return shift_sigma(uniform, shift)


def velocity_weight(sigma: Tensor, shift: float = 1.0) -> Tensor:
    """Return the weight of the velocity loss at each noise level: largest at 0.5, zero at 1, mean 1.

    It is a Gaussian of the timestep, minus its minimum, scaled to mean 1 over the 1000 training levels
    (DiffSynth-Studio's flow-matching schedule, which the authors' release trains with).
    """
    levels = shift_sigma(torch.arange(TIMESTEPS, 0, -1, dtype=torch.float64) / TIMESTEPS, shift)
    gaussian = _compute_gaussian(levels)
    minimum = gaussian.min()
    # On the CPU, because Apple's GPUs have no float64.
    weight = (_compute_gaussian(sigma.cpu().double()) - minimum) / (gaussian - minimum).mean()
    return weight.clamp_min(0).to(sigma)


def _compute_gaussian(sigma: Tensor) -> Tensor:
    return torch.exp(-2 * (sigma - 0.5) ** 2)


def sampling_sigmas(steps: int, shift: float = 1.0, denoise: float = 1.0) -> Tensor:
    """Return the noise levels of a run, float32 `steps + 1`, from high to 0.

    With denoise < 1 they are the last part of a longer run. At shift 1 and denoise 1 they are linspace(1, 0):
    step 15 of 50 is sigma 0.70. Raises ValueError unless steps >= 1 and 0 < denoise <= 1.
    """
    if steps < 1 or not 0 < denoise <= 1:
        raise ValueError(
            f"Sampling needs steps >= 1 and 0 < denoise <= 1, got steps={steps}, denoise={denoise}."
        )
    total = max(steps, round(steps / denoise))
    levels = shift_sigma(torch.linspace(1, 0, total + 1, dtype=torch.float64), shift)
    return levels[-(steps + 1) :].float()
