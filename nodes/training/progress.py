"""What a node shows while it trains: the progress bar, a line of text, and pictures in between."""

import logging
import time

import torch
from PIL import Image
from torch import Tensor

from ...smra_core.training.step_info import StepInfo
from ...smra_core.wan.condition import ExtraInputs, move_inputs, stack_inputs
from ...smra_core.wan.interfaces import Denoiser, Prediction
from ...smra_core.wan.sampler import sample
from ..host.backend import ComfyBackend
from ..host.widgets import show_text
from .outputs import publish_file

log = logging.getLogger("smrabooth")

PREVIEW_STEPS = 12
"""Number of sampling steps of a preview: enough to see a subject or a motion, few enough not to hold up
training.
"""
_LARGEST_SIDE = 512
"""Largest width or height of a preview, in pixels."""


class GraphProgress:
    """Report of every finished step (trainer's `on_step`); ComfyUI raises here when the user cancels."""

    def __init__(self, node: type, preview: "Preview | None" = None):
        self.node, self.preview = node, preview
        self._bar = None
        self._seconds: list[float] = []

    def __call__(self, info: StepInfo) -> None:
        import comfy.utils

        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(info.steps)
        self._seconds.append(info.seconds)
        if info.kept is not None:
            log.info("Kept %s.", publish_file(info.kept, info.kept.stem).name)
        show_text(self.node, self.describe(info))
        picture = self.preview(info.step) if self.preview is not None else None
        self._bar.update_absolute(info.step, info.steps, picture and ("JPEG", picture, _LARGEST_SIDE))

    def describe(self, info: StepInfo) -> str:
        """Return the line for the node: step, losses and the time left."""
        values = info.losses | info.held_out
        losses = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        # The first step also warms up kernels, so it does not count once there are others.
        counted = self._seconds[1:][-20:] or self._seconds
        left = (info.steps - info.step) * sum(counted) / len(counted)
        return f"step {info.step}/{info.steps}  {losses}  {format_duration(left)} left"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds as text of at most two units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Preview:
    """Picture of what the model makes at a step, sampled with its own shift and the training prompt."""

    def __init__(self, backend: ComfyBackend, context: Tensor, shape: tuple[int, ...], every: int, seed: int):
        """Prepare pictures after every `every` steps; 0 draws none.

        `context` is the prompt's text context `T 4096`, `shape` the latent shape `C f h w` of a sample.
        """
        self.backend, self.context, self.shape = backend, context, shape
        self.every, self.seed = every, seed

    def __call__(self, step: int) -> Image.Image | None:
        if not self.every or step % self.every or self.backend.denoiser is None:
            return None
        started = time.monotonic()
        picture = self.draw()
        log.info("Preview after step %d took %s.", step, format_duration(time.monotonic() - started))
        return picture

    def draw(self) -> Image.Image:
        """Sample the model, and return frames of the latents as a picture."""
        import comfy.samplers

        device = self.backend.device
        sampling = self.backend.denoiser.patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", PREVIEW_STEPS).float().clone()
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed))[None].to(device)
        context = self.context[None].to(device)
        denoiser = _Conditioned(self.backend.denoiser, self.backend.conditions[0].inputs, device)
        latents = sample(denoiser, noise, sigmas, context, context, guidance=1.0, on_step=_check_canceled)
        return draw_strip(latents[0].float().cpu(), self.backend.model.model.latent_format)


class _Conditioned:
    """A denoiser that takes the same extra inputs in every evaluation."""

    def __init__(self, denoiser: Denoiser, inputs: ExtraInputs, device: torch.device):
        self.denoiser, self.inputs = denoiser, move_inputs(stack_inputs([inputs]), device)

    def velocity(self, noisy_latents: Tensor, sigma: Tensor, context: Tensor) -> Prediction:
        """Return the denoiser's prediction."""
        return self.denoiser.velocity(noisy_latents, sigma, context, extra=self.inputs)


def _check_canceled(step: int, steps: int) -> None:
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def draw_strip(latents: Tensor, latent_format) -> Image.Image:
    """Return the first, middle and last frame of latents `C f h w` side by side, in the rough colors of
    ComfyUI's own previews.
    """
    frames = sorted({0, latents.shape[1] // 2, latents.shape[1] - 1})
    chosen = latents[:, frames].permute(2, 1, 3, 0).flatten(1, 2)  # c f h w -> h (f w) c
    rgb = chosen @ torch.tensor(latent_format.latent_rgb_factors)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    rgb = rgb if bias is None else rgb + torch.tensor(bias)
    eight_bit = ((rgb + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    picture = Image.fromarray(eight_bit.numpy())
    scale = max(1, _LARGEST_SIDE // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
