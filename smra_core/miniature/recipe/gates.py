"""Acceptance checks of the miniature: do its samples show what the prompt asks for?

Nothing is concluded from a miniature that does not pass them.
"""

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
from ...wan.spec import LATENTS_21
from ..model_files import MINIATURE_FILES
from ..weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from ..world.gait import read_gait
from ..world.measure import measure
from ..world.scenes import (
    BACKGROUNDS,
    FIGURES,
    HELD_OUT_MOTIONS,
    MOTION_WORDS,
    WALKING,
    Scene,
    draw_scene,
    render,
    vary,
)
from ..world.sprite import FRAMES, SIZE
from .stage import cast_where_fast
from .train_flow import EndPointErrors, collect_pairs, measure_end_point_errors
from .train_patches import measure_matching

CPU = torch.device("cpu")
ATTRIBUTES = ("color", "background", "motion", "shape")
NEEDED_VAE = {"motion": 0.95}
NEEDED_GAIT = 0.90
NEEDED_DIT = {"color": 0.95, "motion": 0.80, "shape": 0.70}
SETTINGS = SamplingSettings(steps=20, shift=3.0, guidance=3.0, width=SIZE, height=SIZE, frames=FRAMES)


@dataclass
class Tally:
    """Counts of what was asked for and what was measured, over many clips."""

    pairs: dict[str, Counter] = field(default_factory=lambda: {name: Counter() for name in ATTRIBUTES})
    clips: int = 0

    def add(self, scene: Scene, frames: Tensor) -> None:
        """Measure a clip `F 3 H W` in [0, 1] that should show a scene, and count the result."""
        reading = measure(frames)
        self.clips += 1
        for name in ATTRIBUTES:
            self.pairs[name][getattr(scene, name), getattr(reading, name)] += 1

    def measure_accuracy(self, name: str) -> float:
        """Return the share of the clips in which an attribute was measured as asked for."""
        right = sum(count for (asked, read), count in self.pairs[name].items() if asked == read)
        return right / self.clips

    def list_confusions(self, name: str) -> list[str]:
        """Return a line for each value of an attribute: how often it was right, and what it was taken for."""
        lines = []
        for asked in sorted({asked for asked, _ in self.pairs[name]}):
            row = {read: n for (a, read), n in self.pairs[name].items() if a == asked}
            wrong = ", ".join(f"{read} {n}" for read, n in sorted(row.items()) if read != asked)
            lines.append(f"  {asked:<10}{row.get(asked, 0):>4} of {sum(row.values()):<4}{wrong}")
        return lines

    def render_table(self, needed: dict[str, float]) -> str:
        """Render the accuracies with those needed, and the confusions of each attribute."""
        lines = [f"{self.clips} clips"]
        for name in ATTRIBUTES:
            accuracy, verdict = self.measure_accuracy(name), ""
            if name in needed:
                result = "ok" if accuracy >= needed[name] else "MISSED"
                verdict = f"  needs {needed[name]:.2f}  {result}"
            lines += [f"{name:<12}{accuracy:.3f}{verdict}", *self.list_confusions(name)]
        return "\n".join(lines)


def draw_scenes(count: int, motions: Sequence[str], seed: int = 77) -> list[Scene]:
    """Draw random scenes that take the motions in turn."""
    generator = torch.Generator().manual_seed(seed)
    return [replace(draw_scene(generator), motion=motions[i % len(motions)]) for i in range(count)]


def check_vae(count: int = 140) -> Tally:
    """Reconstruct clips of every motion, held-out ones included, and measure them."""
    codec = MINIATURE_FILES.load_codec(torch.float32, CPU)
    tally = Tally()
    for scene in tqdm(draw_scenes(count, (*MOTION_WORDS, *HELD_OUT_MOTIONS)), desc="VAE gate", unit="clip"):
        with cast_where_fast():
            back = codec.decode(codec.encode(as_video(render(scene).frames)))
        tally.add(scene, as_frames(back[0].float()))
    return tally


class GaitCheck(NamedTuple):
    """Number of walking figures whose legs are read right after the VAE's reconstruction."""

    right: int
    clips: int

    def __str__(self) -> str:
        verdict = "ok" if self.right >= NEEDED_GAIT * self.clips else "MISSED"
        return f"legs        {self.right} of {self.clips}  needs {NEEDED_GAIT:.2f}  {verdict}"


def check_gait(count: int = 40) -> GaitCheck:
    """Reconstruct clips of walking figures with the VAE, and read how their legs swing."""
    codec, generator = MINIATURE_FILES.load_codec(torch.float32, CPU), torch.Generator().manual_seed(78)
    figures, backgrounds = tuple(FIGURES), tuple(BACKGROUNDS)
    right = 0
    for index in tqdm(range(count), desc="gait gate", unit="clip"):
        figure = figures[index % len(figures)]
        background = backgrounds[index // len(figures) % len(backgrounds)]
        scene = vary(Scene(subject=figure, motion=WALKING, background=background), generator)
        with cast_where_fast():
            back = codec.decode(codec.encode(as_video(render(scene).frames)))
        right += read_gait(as_frames(back[0].float()), figure).is_right
    return GaitCheck(right, count)


def check_dit(count: int = 136, batch: int = 8) -> Tally:
    """Sample clips from prompts of every motion, and measure them."""
    scenes = draw_scenes(count, tuple(MOTION_WORDS))
    tally = Tally()
    for scene, frames in zip(scenes, sample_clips([scene.prompt for scene in scenes], batch), strict=True):
        tally.add(scene, frames)
    return tally


def sample_clips(prompts: Sequence[str], batch: int = 8) -> Iterable[Tensor]:
    """Sample clips `F 3 H W` in [0, 1] of prompts with the miniature alone, each from noise of its own."""
    denoiser = MINIATURE_FILES.load_denoiser(torch.float32, CPU)
    codec = MINIATURE_FILES.load_codec(torch.float32, CPU)
    text, sigmas = HashedText(), sampling_sigmas(SETTINGS.steps, SETTINGS.shift)
    for start in tqdm(range(0, len(prompts), batch), desc="sampling", unit="batch"):
        context = text.encode(list(prompts[start : start + batch]))
        noise = initial_noise(replace(SETTINGS, seed=1000 + start), LATENTS_21, len(context))
        negative = text.encode([""] * len(context))
        with cast_where_fast():
            latents = sample(denoiser, noise, sigmas, context, negative, SETTINGS.guidance)
            pixels = [codec.decode(z[None]).float() for z in latents]
        yield from (as_frames(clip[0]) for clip in pixels)


class EncoderMetrics(NamedTuple):
    """Quality of the miniature's encoders on clips and sprites that no training has seen."""

    flow: EndPointErrors
    matching: float
    """Share of sprites whose other picture is the nearest of all; by chance it is 1 / `sprites`."""
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


def check_encoders(clips: int = 40, sprites: int = 100) -> EncoderMetrics:
    """Measure the flow on clips of every motion, held-out ones included, and the features on pairs of
    pictures.
    """
    scenes = draw_scenes(clips, (*MOTION_WORDS, *HELD_OUT_MOTIONS), seed=33)
    pairs = collect_pairs([render(scene) for scene in scenes])
    net = load_sea_raft(SEA_RAFT_FILE)
    dinov2 = load_dinov2(DINOV2_FILE)
    return EncoderMetrics(measure_end_point_errors(net, pairs), measure_matching(dinov2, sprites), sprites)


def draw_samples(path: Path, count: int = len(MOTION_WORDS)) -> Path:
    """Sample a clip of each motion and write them with their prompts as a contact sheet; return its path."""
    prompts = [scene.prompt for scene in draw_scenes(count, tuple(MOTION_WORDS), seed=5)]
    rows = list(zip(prompts, sample_clips(prompts), strict=True))
    write_contact_sheet(rows, path, list(range(0, FRAMES, 2)), "Sampled from the miniature's prompts")
    return path
