"""The gates a miniature must pass before anything is concluded from it: does it show what it is asked for."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ...encoders.dinov2 import load_dinov2
from ...encoders.sea_raft import load_sea_raft
from ...evaluation.contact_sheet import write_contact_sheet
from ...wan.flow_matching import sampling_sigmas
from ...wan.hashed_text import HashedText
from ...wan.latents import as_frames, as_video
from ...wan.sampler import SamplingSettings, initial_noise, sample
from ..model_files import MINIATURE_FILES
from ..weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from ..world.measure import measure
from ..world.scenes import HELD_OUT_MOTIONS, MOTION_WORDS, Scene, random_scene, render
from ..world.sprite import FRAMES, SIZE
from .stage import bfloat16_where_fast
from .train_flow import EndPointErrors, end_point_errors, pairs_of
from .train_patches import matching

CPU = torch.device("cpu")
ATTRIBUTES = ("color", "background", "motion", "shape")
NEEDED_VAE = {"motion": 0.95}
NEEDED_DIT = {"color": 0.95, "motion": 0.80, "shape": 0.70}
SETTINGS = SamplingSettings(steps=20, shift=3.0, guidance=3.0, width=SIZE, height=SIZE, frames=FRAMES)


@dataclass
class Tally:
    """What was asked for and what was read, over many clips."""

    pairs: dict[str, Counter] = field(default_factory=lambda: {name: Counter() for name in ATTRIBUTES})
    clips: int = 0

    def add(self, scene: Scene, frames: Tensor) -> None:
        reading = measure(frames)
        self.clips += 1
        for name in ATTRIBUTES:
            self.pairs[name][getattr(scene, name), getattr(reading, name)] += 1

    def accuracy(self, name: str) -> float:
        right = sum(count for (asked, read), count in self.pairs[name].items() if asked == read)
        return right / self.clips

    def confusions(self, name: str) -> list[str]:
        """A line a class: how often it was read right, and what it was taken for."""
        lines = []
        for asked in sorted({asked for asked, _ in self.pairs[name]}):
            row = {read: n for (a, read), n in self.pairs[name].items() if a == asked}
            wrong = ", ".join(f"{read} {n}" for read, n in sorted(row.items()) if read != asked)
            lines.append(f"  {asked:<10}{row.get(asked, 0):>4} of {sum(row.values()):<4}{wrong}")
        return lines

    def table(self, needed: dict[str, float]) -> str:
        """Accuracies against what is needed, then the confusions of each attribute."""
        lines = [f"{self.clips} clips"]
        for name in ATTRIBUTES:
            gate = f"  needs {needed[name]:.2f}" if name in needed else ""
            verdict = (
                "" if name not in needed else ("  ok" if self.accuracy(name) >= needed[name] else "  MISSED")
            )
            lines += [f"{name:<12}{self.accuracy(name):.3f}{gate}{verdict}", *self.confusions(name)]
        return "\n".join(lines)


def spread_scenes(count: int, motions: Sequence[str], seed: int = 77) -> list[Scene]:
    """Random scenes that take the motions in turn."""
    generator = torch.Generator().manual_seed(seed)
    return [replace(random_scene(generator), motion=motions[i % len(motions)]) for i in range(count)]


def gate_vae(count: int = 140) -> Tally:
    """Reconstruct clips of every motion, held-out ones included, and read them."""
    codec = MINIATURE_FILES.load_codec(torch.float32, CPU)
    tally = Tally()
    for scene in tqdm(spread_scenes(count, (*MOTION_WORDS, *HELD_OUT_MOTIONS)), desc="VAE gate", unit="clip"):
        with bfloat16_where_fast():
            back = codec.decode(codec.encode(as_video(render(scene).frames)))
        tally.add(scene, as_frames(back[0].float()))
    return tally


def gate_dit(count: int = 136, batch: int = 8) -> Tally:
    """Sample clips from prompts of every motion, and read them."""
    scenes = spread_scenes(count, tuple(MOTION_WORDS))
    tally = Tally()
    for scene, frames in zip(scenes, sampled([scene.prompt() for scene in scenes], batch), strict=True):
        tally.add(scene, frames)
    return tally


def sampled(prompts: Sequence[str], batch: int = 8) -> Iterable[Tensor]:
    """Clips `F 3 H W` of prompts by the miniature alone, each from noise of its own."""
    denoiser = MINIATURE_FILES.load_denoiser(torch.float32, CPU)
    codec = MINIATURE_FILES.load_codec(torch.float32, CPU)
    text, sigmas = HashedText(), sampling_sigmas(SETTINGS.steps, SETTINGS.shift)
    for start in tqdm(range(0, len(prompts), batch), desc="sampling", unit="batch"):
        context = text.encode(list(prompts[start : start + batch]))
        noise = initial_noise(replace(SETTINGS, seed=1000 + start), len(context))
        negative = text.encode([""] * len(context))
        with bfloat16_where_fast():
            latents = sample(denoiser, noise, sigmas, context, negative, SETTINGS.guidance)
            pixels = [codec.decode(z[None]).float() for z in latents]
        yield from (as_frames(clip[0]) for clip in pixels)


class TeacherFigures(NamedTuple):
    """How good the miniature's teachers are on clips and sprites that no training has seen."""

    flow: EndPointErrors
    matching: float
    """Share of sprites whose other picture is found among `sprites`; chance is 1 in that many."""
    sprites: int

    def __str__(self) -> str:
        flow, chance = self.flow, 1 / self.sprites
        return (
            "flow, end-point error in pixels on clips of the world and of its held-out motions (needs 0.50)\n"
            f"  on the sprite  {flow.on_sprite:.3f}; zero flow {flow.zero_on_sprite:.3f}; exact flow 0\n"
            f"  whole frame    {flow.everywhere:.3f}; zero flow {flow.zero_everywhere:.3f}; exact flow 0\n"
            f"patches: {self.matching:.2f} of {self.sprites} unseen sprites find their other picture "
            f"among all (chance {chance:.2f})"
        )


def gate_teachers(clips: int = 40, sprites: int = 100) -> TeacherFigures:
    """Flow on clips of every motion, held-out ones included; features on pairs of pictures of sprites."""
    scenes = spread_scenes(clips, (*MOTION_WORDS, *HELD_OUT_MOTIONS), seed=33)
    pairs = pairs_of([render(scene) for scene in scenes])
    net = load_sea_raft(SEA_RAFT_FILE)
    dinov2 = load_dinov2(DINOV2_FILE)
    return TeacherFigures(end_point_errors(net, pairs), matching(dinov2, sprites), sprites)


def draw_samples(path: Path, count: int = 12) -> Path:
    """Sampled clips beside their prompts, as a contact sheet."""
    prompts = [scene.prompt() for scene in spread_scenes(count, tuple(MOTION_WORDS), seed=5)]
    rows = list(zip(prompts, sampled(prompts), strict=True))
    write_contact_sheet(rows, path, list(range(0, FRAMES, 2)), "Sampled from the miniature's prompts")
    return path
