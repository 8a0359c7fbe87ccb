"""Generation of videos from prompts and LoRAs. Text encoder, DiT and VAE are loaded once, in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..lora.schedule import ScheduledLora, TPoint, scheduled
from ..lora.settled_switch import SettledSwitch
from ..storage.on_demand import loaded_on_first_use
from ..wan.flow_matching import sampling_sigmas
from ..wan.interfaces import VideoCodec
from ..wan.latents import as_frames
from ..wan.sampler import SamplingSettings, initial_noise, sample
from .backend import StandaloneBackend


@dataclass(frozen=True)
class Variant:
    """One combination of LoRAs, strengths and T_point to compare with others."""

    name: str
    description: str
    loras: tuple[ScheduledLora, ...] = ()
    t_point: TPoint | SettledSwitch = TPoint()


def generate(
    backend: StandaloneBackend,
    prompts: Sequence[str],
    variants: Sequence[Variant],
    settings: SamplingSettings,
    negative: str = "",
    on_step: Callable[[str, int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Generate videos `B F 3 H W` in [0, 1] for every variant, all from the same noise and the same prompts.

    Returns them by the variant's name; ValueError for a size that the model's tokens do not divide, and for
    a model that takes an image.
    `negative` is the prompt of the unguided prediction. `on_step` is
    called after every step with the variant's name, the step and the number of steps.
    """
    if backend.spec.extra_channels:
        raise ValueError(
            f"{backend.spec.name} makes videos from an image, and here they are made from text alone. Apply "
            "the LoRA in ComfyUI, or give the text-to-video model of the same size."
        )
    backend.spec.latents.check_size(settings.width, settings.height)
    contexts = backend.encode_captions([*prompts, negative])
    context = torch.stack([contexts[prompt] for prompt in prompts]).to(backend.device)
    unguided = contexts[negative].to(backend.device).expand_as(context)
    sigmas = sampling_sigmas(settings.steps, settings.shift)
    noise = initial_noise(settings, backend.spec.latents, len(prompts)).to(backend.device)
    latents: dict[str, Tensor] = {}
    at_once = len(prompts) * (1 if settings.guidance == 1 else 2)
    with backend.denoiser_for_sampling(settings, at_once) as denoiser:
        for variant in variants:
            for one in variant.loras:
                for pair in one.lora.values():
                    pair.to(backend.device, backend.dtype)
            report = None if on_step is None else partial(on_step, variant.name)
            levels = sigmas.tolist()
            record = variant.t_point.record if isinstance(variant.t_point, SettledSwitch) else None
            with scheduled(denoiser().linears(), variant.loras, variant.t_point, levels) as set_strengths:
                latents[variant.name] = sample(
                    denoiser(), noise, sigmas, context, unguided, settings.guidance, settings.sampler,
                    report, set_strengths, record,
                ).cpu()  # fmt: skip
    with loaded_on_first_use(partial(backend.files.load_codec, backend.codec_dtype, backend.device)) as codec:
        return {name: decode_each(codec(), batch, backend.device) for name, batch in latents.items()}


def decode_each(codec: VideoCodec, latents: Tensor, device: torch.device) -> Tensor:
    """Decode latents `B C f h w` to videos `B F 3 H W` in [0, 1], one at a time.

    A decoder's activations are the largest tensors in memory.
    """
    return torch.stack([as_frames(codec.decode(z[None].to(device))[0].float().cpu()) for z in latents])
