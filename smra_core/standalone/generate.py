"""From prompts and LoRAs to videos: text, noise, denoising, decoding, each model loaded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora.plan import TPointSchedule
from ..storage.on_demand import on_demand
from ..wan.flow_matching import sampling_sigmas
from ..wan.sampler import SamplingSettings, ScheduledLora, initial_noise, sample
from .backend import Workplace, as_frames


@dataclass(frozen=True)
class Arm:
    """One way to put LoRAs together; what comparisons compare."""

    name: str
    description: str
    loras: tuple[ScheduledLora, ...] = ()
    t_point: TPointSchedule = TPointSchedule()


def generate(
    workplace: Workplace,
    prompts: Sequence[str],
    arms: Sequence[Arm],
    settings: SamplingSettings,
    negative: str = "",
    on_step: Callable[[str, int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Videos `B F 3 H W` in [0, 1] of every arm, all from the same noise and the same prompts.

    `on_step` gets the arm's name, the step and the number of steps.
    """
    contexts = workplace.contexts([*prompts, negative])
    context = torch.stack([contexts[prompt] for prompt in prompts]).to(workplace.device)
    unguided = contexts[negative].to(workplace.device).expand_as(context)
    sigmas = sampling_sigmas(settings.steps, settings.shift, settings.denoise)
    noise = initial_noise(settings, len(prompts)).to(workplace.device)
    latents: dict[str, Tensor] = {}
    with on_demand(lambda: workplace.backbone.load_denoiser(workplace.dtype, workplace.device)) as denoiser:
        for arm in arms:
            for lora, _ in arm.loras:
                for pair in lora.values():
                    pair.to(workplace.device, workplace.dtype)
            report = None if on_step is None else _named(on_step, arm.name)
            latents[arm.name] = sample(
                denoiser(), noise, sigmas, context, unguided, settings.guidance,
                arm.loras, arm.t_point, settings.sampler, report,
            ).cpu()  # fmt: skip
    with on_demand(lambda: workplace.backbone.load_codec(workplace.codec_dtype, workplace.device)) as codec:
        return {name: decode_each(codec(), batch, workplace.device) for name, batch in latents.items()}


def decode_each(codec, latents: Tensor, device: torch.device) -> Tensor:
    """Decode one video at a time: a decoder's activations are the largest thing in memory."""
    return torch.stack([as_frames(codec.decode(z[None].to(device))[0].float().cpu()) for z in latents])


def _named(on_step: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda step, steps: on_step(name, step, steps)
