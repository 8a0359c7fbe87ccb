"""Clips of the bench's arms: sampled for many LoRAs at once, and measured one by one."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...decoding.wan_decoder import WanVideoDecoder
from ...wan.flow_matching import sampling_sigmas
from ...wan.hashed_text import HashedText
from ...wan.interfaces import Denoiser
from ...wan.latents import as_frames, to_uint8
from ...wan.noise_range import NoiseRange
from ...wan.sampler import initial_noise
from ...wan.spec import LATENTS_21
from ..held_out_files import REFERENCES
from ..world.measure import measure
from ..world.scenes import AMPLITUDE, FIGURES, Scene, draw_scene, trace
from .metrics import STILL, compare_tracks, measure_likeness
from .parts import measure_parts
from .stacked_lora import StackedLora, injected_stack
from .variants import SAMPLING

CLIPS = 12
"""Number of clips of each trained LoRA."""
_CLIPS_AT_ONCE = 128


def list_motion_scenes(motion: str, count: int = CLIPS) -> list[Scene]:
    """List known sprites that should move as a held-out clip, none of which looks like the clip's own."""
    generator, own = torch.Generator().manual_seed(11), REFERENCES[motion]
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = replace(draw_scene(generator), motion=motion)
        if scene.color != own.color and scene.shape != own.shape and scene not in scenes:
            scenes.append(scene)
    return scenes


def list_subject_scenes(subject: str) -> list[Scene]:
    """List a held-out subject in known motions, on every background; no picture shows maroon."""
    motions = ("left", "up", "circling", "right")
    places = zip(motions, ("maroon", "gray", "black", "navy"), strict=True)
    return [Scene(subject=subject, motion=motion, background=background) for motion, background in places]


@torch.no_grad()
def sample_stack(
    denoiser: Denoiser,
    stack: StackedLora,
    prompts: Sequence[Sequence[str]],
    seed: int,
    applied: Sequence[NoiseRange],
) -> Tensor:
    """Sample latents `R C 16 f h w`: C prompts of each run, from the same noise for every run.

    Each LoRA is on at the noise levels of its own range.
    """
    device, runs, count = stack.strengths.device, stack.runs, len(prompts[0])
    text = HashedText()
    words = {prompt: text.encode([prompt])[0] for prompt in {*sum(map(list, prompts), []), ""}}
    context = torch.stack([torch.stack([words[p], words[""]]) for row in prompts for p in row])
    context = context.unflatten(0, (runs, count)).flatten(0, 2).to(device)
    noise = initial_noise(replace(SAMPLING, seed=seed), LATENTS_21, count).to(device)
    latents = noise.expand(runs, *noise.shape)
    sigmas = sampling_sigmas(SAMPLING.steps, SAMPLING.shift).tolist()
    with injected_stack(denoiser.linears(), stack):
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            stack.strengths = latents.new_tensor([each.holds(sigma) for each in applied])
            both = latents[:, :, None].expand(-1, -1, 2, -1, -1, -1, -1).flatten(0, 2)
            level = both.new_full((len(both),), sigma)
            velocity = denoiser.velocity(both, level, context).velocity.unflatten(0, (runs, count, 2))
            guided = velocity[:, :, 1] + SAMPLING.guidance * (velocity[:, :, 0] - velocity[:, :, 1])
            latents = latents + (following - sigma) * guided
    stack.strengths = torch.ones_like(stack.strengths)
    return latents


@torch.no_grad()
def decode_clips(decoder: WanVideoDecoder, latents: Tensor) -> Tensor:
    """Decode latents `N 16 f h w` to clips `N F 3 H W`, bytes on the CPU."""
    parts = [decoder.finish(part) for part in latents.split(_CLIPS_AT_ONCE)]
    return torch.cat([torch.stack([to_uint8(as_frames(clip)) for clip in part]).cpu() for part in parts])


def measure_motion(frames: Tensor, scene: Scene) -> dict[str, float]:
    """Measure a clip `F 3 H W` in [0, 1] of a known sprite that should move as the held-out clip."""
    reading = measure(frames)
    wanted = AMPLITUDE * trace(scene.motion, torch.linspace(0, 1, len(frames)))
    wanted = wanted - wanted.mean(0)
    x, y = (compare_tracks(reading.track[:, axis], wanted[:, axis]) for axis in (0, 1))
    return {
        "x": x,
        "y": y,
        "recognized": float(reading.motion == scene.motion),
        "amount": (reading.track.norm() / wanted.norm()).item(),
        "error": ((reading.track - wanted).norm() / wanted.norm()).item(),
        "shape": float(reading.shape == scene.shape),
        "color": float(reading.color == scene.color),
        "background": float(reading.background == scene.background),
        "leak": float(reading.color == REFERENCES[scene.motion].color),
    }


def measure_subject(frames: Tensor, scene: Scene) -> dict[str, float]:
    """Measure a clip `F 3 H W` in [0, 1] of a held-out subject that should move as the prompt says."""
    reading = measure(frames)
    wanted = AMPLITUDE * trace(scene.motion, torch.linspace(0, 1, len(frames)))
    length = (wanted - wanted.mean(0)).norm()
    parts = {"parts": measure_parts(frames, scene.subject)} if scene.subject in FIGURES else {}
    return {
        "likeness": measure_likeness(frames, scene.subject),
        **parts,
        "background": float(reading.background == scene.background),
        "recognized": float(reading.motion == scene.motion),
        "still": float(reading.track.norm() < STILL * length),
        "seen": reading.found,
    }
