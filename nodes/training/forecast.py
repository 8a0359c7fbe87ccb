"""Forecast of memory and time, shown before training starts; smra_core.training.cost counts them."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ...smra_core.data.color_copies import describe_copies
from ...smra_core.training.cost import (
    count_alignment_flops,
    count_forward_flops,
    count_lora_parameters,
    count_step_flops,
)
from ...smra_core.training.decode_memory import DecodeChoice
from ...smra_core.training.memory import (
    DitMemory,
    MemoryAccount,
    estimate_motion_memory,
    estimate_subject_memory,
)
from ...smra_core.training.memory_advice import check_memory, list_motion_changes, list_subject_changes
from ...smra_core.training.motion_settings import MotionSettings
from ...smra_core.training.sura import SubjectSettings
from ...smra_core.training.train_settings import TrainSettings
from ...smra_core.wan.spec import WanSpec
from .progress import format_duration

log = logging.getLogger("smrabooth")


@dataclass(frozen=True)
class Forecast:
    """Memory and time forecast of one training job."""

    samples: str
    """Description of what is trained on, in words."""
    train: TrainSettings
    tokens: int
    """Number of tokens of a sample."""
    modules: int
    """Number of linears that get the LoRA."""
    parameters: int
    """Number of parameters of the LoRA."""
    flops: float
    """Floating-point operations per sample and step."""
    account_of: Callable[[DitMemory], MemoryAccount]
    """Memory of a step, given how the model's weights are kept."""
    list_changes: Callable[[DitMemory, float], list[str]]
    """Changes that fit into so many bytes, in words, given how the model's weights are kept."""

    @property
    def memory(self) -> int:
        """Bytes in addition to the model's weights and to what CUDA takes for itself, if nothing that blocks
        keep waits in host memory.
        """
        account = self.account_of(DitMemory(0))
        return account.total - account.context

    def estimate_seconds(self, speed: float) -> float:
        """Return the seconds of all steps, at `speed` floating-point operations per second."""
        return self.train.steps * self.train.batch_size * self.train.accumulate * self.flops / speed

    def describe(self, weights: int, seconds: float) -> str:
        """Return and log one line for the node; `weights` are the bytes of the model's weights."""
        text = (
            f"Training on {self.samples}, {self.tokens} tokens each: {self.modules} modules, "
            f"{self.parameters / 1e6:.1f} M parameters, {self.train.steps} steps. Up to "
            f"{(self.memory + weights) / 2**30:.1f} GiB ({weights / 2**30:.1f} of it weights, which may stay "
            f"in RAM), about {format_duration(seconds)}."
        )
        log.info(text)
        return text

    def describe_lack(self, weights: int, memory: float | None) -> list[str]:
        """Return and log what may not fit into `memory` bytes of the card even with all weights in RAM, and
        what to change; nothing where it fits, or on a CPU, whose `memory` is None.

        Raises ValueError where it surely does not fit.
        """
        if memory is None:
            return []
        least = DitMemory(weights).take_least()
        return check_memory(self.account_of(least), memory, lambda: self.list_changes(least, memory))


def estimate_subject_run(
    spec: WanSpec,
    settings: SubjectSettings,
    train: TrainSettings,
    lengths: Sequence[int],
    dtype: torch.dtype,
) -> Forecast:
    """Return the forecast for samples of so many frames each, 1 for a picture; DINOv2 is freed before
    training starts.

    Raises ValueError where the blocks of the plan do not exist.
    """
    modules, parameters = _count_lora(spec, settings)
    frames = max(lengths)
    tokens = spec.latents.count_tokens(frames, settings.width, settings.height)
    samples = (
        f"{_describe_samples(lengths)} of {settings.width}x{settings.height}{_describe_noise(settings, spec)}"
    )
    return Forecast(
        samples, train, tokens, modules, parameters, count_step_flops(spec, tokens)
        + (count_forward_flops(spec, tokens) if settings.preserve_weight else 0.0),
        lambda weights: estimate_subject_memory(
            spec, settings, weights, train.batch_size, dtype.itemsize, frames
        ),
        lambda weights, memory: list_subject_changes(
            spec, settings, weights, memory, train.batch_size, frames
        ),
    )  # fmt: skip


def _describe_samples(lengths: Sequence[int]) -> str:
    """Return how many pictures and clips there are, and the most frames of a clip."""
    clips = [frames for frames in lengths if frames > 1]
    pictures, parts = len(lengths) - len(clips), []
    if pictures:
        parts.append("1 picture" if pictures == 1 else f"{pictures} pictures")
    if len(clips) == 1:
        parts.append(f"a clip of {clips[0]} frames")
    elif clips:
        parts.append(f"{len(clips)} clips of up to {max(clips)} frames")
    return " and ".join(parts)


def estimate_motion_run(
    spec: WanSpec,
    settings: MotionSettings,
    train: TrainSettings,
    choice: DecodeChoice,
    dtype: torch.dtype,
    count: int = 1,
) -> Forecast:
    """Return the forecast for `count` clips of at most `settings.frames`; `choice` says how they are decoded.

    Raises ValueError where the blocks of the plan do not exist.
    """
    modules, parameters = _count_lora(spec, settings)
    tokens = spec.latents.count_tokens(settings.frames, settings.width, settings.height)
    preservation = 0.0
    if settings.preserve_weight:
        # As for clips without masks, for which the model is evaluated with and without the LoRA once more.
        preservation = count_step_flops(spec, tokens) + count_forward_flops(spec, tokens)
    copies = settings.color_copies * (count - bool(train.held_out_every))
    clips = f"{describe_copies(count, copies)} of up to " if count + copies > 1 else ""
    how = f", decoded {choice.decode}" if settings.mora_weight else ""
    how += _describe_noise(settings, spec)
    return Forecast(
        f"{clips}{settings.frames} frames of {settings.width}x{settings.height}{how}", train, tokens, modules,
        parameters,
        count_step_flops(spec, tokens)
        + preservation
        + count_alignment_flops(settings, choice.decode, choice.recompute, spec.latents),
        lambda weights: estimate_motion_memory(
            spec, settings, choice, weights, train.batch_size, dtype.itemsize
        ),
        lambda weights, memory: list_motion_changes(
            spec, replace(settings, decode=choice.decode), weights, memory, choice.tiny_file is not None,
            train.batch_size,
        ),
    )  # fmt: skip


def _describe_noise(settings: SubjectSettings | MotionSettings, spec: WanSpec) -> str:
    """Return the noise range of this model as a part of a sentence; nothing for the whole range."""
    noise_range = settings.noise_range.fit_to(spec)
    return "" if noise_range.is_whole else f" at the noise range {noise_range}"


def _count_lora(spec: WanSpec, settings: SubjectSettings | MotionSettings) -> tuple[int, int]:
    """Return the number of linears that get the LoRA, and of the LoRA's parameters."""
    names = settings.plan.select(spec.linear_names())
    return len(names), count_lora_parameters(spec, names, settings.rank)


def measure_flops(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Return the floating-point operations per second of a product of two square matrices."""
    size = size if device.type == "cpu" else 4 * size
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    (a @ b)[0, 0].item()
    started = time.monotonic()
    (a @ b)[0, 0].item()  # item() waits for the device
    return 2 * size**3 / max(time.monotonic() - started, 1e-6)
