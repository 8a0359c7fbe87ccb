"""Flow matching as WAN uses it: straight paths from clean latents (sigma 0) to noise (sigma 1).

`x_t = (1 - sigma) x0 + sigma noise`, the model predicts the velocity `noise - x0`, and gets the timestep
`1000 sigma` as its input. Shapes are `B C f h w` for latents and `B` for sigmas; where each latent has a
noise level of its own they are `B f`.
"""

import torch
from torch import Tensor

from .noise_range import WHOLE, NoiseRange
from .spec import TIMESTEPS


def expand_per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape values `B` so that they broadcast over `like` of shape `B ...`, and values `B f` over
    `B C f h w`, in its dtype.
    """
    if sigma.ndim == 2:
        return sigma.to(like.dtype)[:, None, :, None, None]
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


def unshift_sigma(sigma: float, shift: float) -> float:
    """Return the noise level that `shift_sigma` moves to this one."""
    return sigma / (shift - (shift - 1) * sigma)


def spread_over_range(share: Tensor, noise_range: NoiseRange, shift: float = 1.0) -> Tensor:
    """Return noise levels at shares in (0, 1] of the training draws, of which share 1 is the highest level.

    They are uniform over the range at shift 1; a shift moves them toward the range's upper end.
    """
    low, high = (unshift_sigma(end, shift) for end in (noise_range.low, noise_range.high))
    return shift_sigma(low + (high - low) * share, shift).clamp(noise_range.low, noise_range.high)


def sample_training_sigma(
    batch: int, generator: torch.Generator, shift: float = 1.0, noise_range: NoiseRange = WHOLE
) -> Tensor:
    """Draw random noise levels of a range above 0, float32 `B`; uniform at shift 1, which the authors train
    with.
    """
    share = 1 - torch.rand(batch, generator=generator)  # rand is in [0, 1); sigma 0 would give no signal
    return spread_over_range(share, noise_range, shift)


def list_training_levels(shift: float, noise_range: NoiseRange = WHOLE) -> Tensor:
    """Return 1000 noise levels that training draws with equal chance, float64, from high to low."""
    share = torch.arange(TIMESTEPS, 0, -1, dtype=torch.float64) / TIMESTEPS
    return spread_over_range(share, noise_range, shift)


def velocity_weight(sigma: Tensor, shift: float = 1.0, noise_range: NoiseRange = WHOLE) -> Tensor:
    """Return the weight of the velocity loss at each noise level: mean 1 over the training levels, zero at 1,
    and over the whole range largest at 0.5.

    It is a Gaussian of the timestep, minus its minimum, scaled to mean 1 over the range's training levels
    (DiffSynth-Studio's flow-matching schedule, which the authors' release trains with).
    """
    mean = _compute_bell(list_training_levels(shift, noise_range)).mean()
    # On the CPU, because Apple's GPUs have no float64.
    return (_compute_bell(sigma.cpu().double()) / mean).clamp_min(0).to(sigma)


def _compute_bell(sigma: Tensor) -> Tensor:
    """Return the Gaussian of the noise level, minus its minimum over all levels, which it has at 1."""
    return _compute_gaussian(sigma) - _compute_gaussian(torch.ones((), dtype=torch.float64))


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
