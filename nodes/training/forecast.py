"""What a job will take, said before it starts; the metrics are the core's."""

import logging
import time
from dataclasses import dataclass

import torch

from ...smra_core.training.cost import (
    count_activation_bytes,
    count_alignment_flops,
    count_lora_parameters,
    count_optimizer_bytes,
    count_projector_parameters,
    count_step_flops,
)
from ...smra_core.training.decode_choice import DecodeChoice
from ...smra_core.training.mora import MotionSettings
from ...smra_core.training.sura import SubjectSettings
from ...smra_core.training.trainer import TrainSettings
from ...smra_core.wan.spec import WanSpec, token_grid
from .progress import format_duration

log = logging.getLogger("smrabooth")

_HALF = 2
"""Bytes of a value in the decode budget's metrics."""
_WIDEST_FEATURES = 1536
"""Of DINOv2's ViT-g; the file is not read before it is needed."""


@dataclass(frozen=True)
class Forecast:
    """Of one job on one model."""

    samples: str
    """What is trained on, in words."""
    train: TrainSettings
    tokens: int
    """Of a sample."""
    modules: int
    parameters: int
    """Of the LoRA."""
    memory: int
    """Bytes beside the model's weights: activations, and the trained parameters with their optimizer."""
    flops: float
    """Of one sample in one step."""

    def seconds(self, speed: float) -> float:
        """Of all steps, at `speed` floating-point operations per second."""
        return self.train.steps * self.train.batch_size * self.train.accumulate * self.flops / speed

    def line(self, weights: int, seconds: float) -> str:
        """One line for the node and the log; `weights` are the model's, in bytes."""
        text = (
            f"Training on {self.samples}, {self.tokens} tokens each: {self.modules} modules, "
            f"{self.parameters / 1e6:.1f} M parameters, {self.train.steps} steps. Up to "
            f"{(self.memory + weights) / 2**30:.1f} GiB ({weights / 2**30:.1f} of it weights, which may stay "
            f"in RAM), about {format_duration(seconds)}."
        )
        log.info(text)
        return text


def subject_forecast(
    spec: WanSpec,
    settings: SubjectSettings,
    train: TrainSettings,
    latents: tuple[int, ...],
    count: int,
    dtype: torch.dtype,
) -> Forecast:
    """`latents` is a picture's shape `16 1 h w`; DINOv2 is freed before training starts."""
    modules, parameters, tokens = _trained(spec, settings, latents)
    projector = 0
    if settings.sura_weight:
        projector = count_projector_parameters(spec.dim, _WIDEST_FEATURES, settings.projector_width)
    activations = count_activation_bytes(spec, tokens, train.batch_size, dtype.itemsize)
    return Forecast(
        f"{count} pictures of {settings.width}x{settings.height}", train, tokens, modules, parameters,
        activations + count_optimizer_bytes(parameters + projector), count_step_flops(spec, tokens),
    )  # fmt: skip


def motion_forecast(
    spec: WanSpec,
    settings: MotionSettings,
    train: TrainSettings,
    latents: tuple[int, ...],
    choice: DecodeChoice,
    dtype: torch.dtype,
) -> Forecast:
    """`latents` is the clip's shape `16 f h w`; `choice` tells how its pixels are looked at."""
    modules, parameters, tokens = _trained(spec, settings, latents)
    activations = count_activation_bytes(spec, tokens, train.batch_size, dtype.itemsize)
    if settings.mora_weight:
        # The budget is for one sample in half precision, and for blocks that keep more than the host's.
        activations = round(choice.bytes * train.batch_size * dtype.itemsize / _HALF)
    how = f", decoded {choice.decode}" if settings.mora_weight else ""
    return Forecast(
        f"{settings.frames} frames of {settings.width}x{settings.height}{how}", train, tokens, modules,
        parameters, activations + count_optimizer_bytes(parameters),
        count_step_flops(spec, tokens) + count_alignment_flops(settings, choice.decode, choice.recompute),
    )  # fmt: skip


def _trained(
    spec: WanSpec, settings: SubjectSettings | MotionSettings, latents: tuple[int, ...]
) -> tuple[int, int, int]:
    """Modules, parameters, and tokens of a sample. ValueError where the plan's blocks are not there."""
    names = settings.plan.select(spec.linear_names())
    frames, rows, columns = token_grid(latents)
    return len(names), count_lora_parameters(spec, names, settings.rank), frames * rows * columns


def measured_flops(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Floating-point operations per second of a square product."""
    size = size if device.type == "cpu" else 4 * size
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    (a @ b)[0, 0].item()
    started = time.monotonic()
    (a @ b)[0, 0].item()  # item() waits for the device
    return 2 * size**3 / max(time.monotonic() - started, 1e-6)
