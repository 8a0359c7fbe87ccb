"""Check of the meters: LoRAs that were planted to leak or to still must rank worse than clean ones.

A clean motion LoRA has the paper's layers; a leaky one was trained too long on its clip, in all layers. A
clean subject LoRA has the paper's layers; a stilling one was trained too long on its pictures, in all layers.
A pair is trained from one seed. The folder keeps every LoRA, and in `planted.jsonl` a line for each pair.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from torch import Tensor

from ...encoders.dinov2 import load_dinov2
from ...encoders.sea_raft import load_sea_raft
from ...evaluation.leak_meter import LeakMeter
from ...evaluation.stillness_meter import measure_stillness
from ...lora.plan import ALL_LAYERS
from ...lora.reader import load_lora
from ...lora.schedule import ScheduledLora, Strengths
from ...standalone.generate import Variant, generate
from ...standalone.progress_bar import TrainingBar
from ...training.motion import train_motion
from ...training.subject import train_subject
from ..small_settings import MOTION, MOTION_TRAINING, SUBJECT, SUBJECT_TRAINING
from ..weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from ..world.scenes import HELD_OUT_MOTIONS, HELD_OUT_SUBJECTS, Scene
from .run import Bench, open_bench
from .variants import SAMPLING

PLANTED_FILE = "planted.jsonl"
SEEDS = 2
"""Seeds of the videos of each LoRA."""
SCENES = (
    Scene("circle", "green", "plain", "gray", "left"),
    Scene("triangle", "yellow", "striped", "maroon", "up"),
)
"""Scenes of the neutral prompts, which name neither the clip nor the subject. For stillness the subject takes
the place of the shape: without its word a subject LoRA changes little.
"""
CLEAN_STEPS, LONG_STEPS = 100, 500
"""Training steps of a clean LoRA and of a planted one."""
_SUBJECTS = tuple(HELD_OUT_SUBJECTS)


def run_planted(folder: Path, pairs: int) -> Path:
    """Measure pairs of clean and planted LoRAs; return the path of the file with a line for each."""
    bench, path = open_bench(folder), folder / PLANTED_FILE
    done = len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
    for seed in range(done, pairs):
        line = json.dumps({"seed": seed, **measure_leaks(bench, seed), **measure_stilling(bench, seed)})
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    return path


def describe_ranking(path: Path) -> str:
    """Return how often the planted LoRA of a pair ranked worse."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    leaks = sum(line["leaky"] > line["clean"] for line in lines)
    stills = sum(line["stilling"] < line["moving"] for line in lines)
    return (
        f"{len(lines)} pairs, {SEEDS} seeds of {len(SCENES)} prompts each: the leaky LoRA ranked worse in "
        f"{leaks}, the stilling one in {stills}."
    )


def measure_leaks(bench: Bench, seed: int) -> dict[str, float]:
    """Return the leaks of a clean and of a leaky motion LoRA that are trained from one seed."""
    clip = bench.write_clip(HELD_OUT_MOTIONS[seed % len(HELD_OUT_MOTIONS)])
    meter = LeakMeter(load_dinov2(DINOV2_FILE), load_sea_raft(SEA_RAFT_FILE), clip.frames)
    settings = replace(MOTION, mora_weight=0.0)  # MoRA holds no look, and decoding takes most of the time
    leaks = {}
    for name, steps, chosen in (
        ("clean", CLEAN_STEPS, settings),
        ("leaky", LONG_STEPS, replace(settings, plan=ALL_LAYERS)),
    ):
        training = replace(MOTION_TRAINING, steps=steps, seed=seed)
        with TrainingBar(f"{name} motion") as report:
            trained = train_motion(bench.backend, [clip], SEA_RAFT_FILE, chosen, training, name, report)
        videos = list(sample_seeds(bench, trained.path))
        leaks[name] = meter.measure(videos, sample_bases(bench)).worst.mean
    return leaks


def measure_stilling(bench: Bench, seed: int) -> dict[str, float]:
    """Return the motion that a clean and a stilling subject LoRA leave, both trained from one seed."""
    subject = _SUBJECTS[seed % len(_SUBJECTS)]
    images, scenes = bench.write_images(subject), tuple(replace(scene, subject=subject) for scene in SCENES)
    sea_raft, motion = load_sea_raft(SEA_RAFT_FILE), {}
    for name, steps, chosen in (
        ("moving", CLEAN_STEPS, replace(SUBJECT, sura_weight=0.0)),
        ("stilling", LONG_STEPS, replace(SUBJECT, sura_weight=0.0, plan=ALL_LAYERS)),
    ):
        training = replace(SUBJECT_TRAINING, steps=steps, seed=seed)
        with TrainingBar(f"{name} subject") as report:
            trained = train_subject(bench.backend, images, DINOV2_FILE, chosen, training, name, report)
        videos = list(sample_seeds(bench, trained.path, scenes))
        motion[name] = measure_stillness(sea_raft, videos, sample_bases(bench, scenes)).motion.mean
    return motion


@cache
def sample_bases(bench: Bench, scenes: tuple[Scene, ...] = SCENES) -> list[Tensor]:
    """Sample the scenes without any LoRA, `B F 3 H W` in [0, 1] for each seed."""
    return list(sample_seeds(bench, None, scenes))


def sample_seeds(bench: Bench, lora: Path | None, scenes: tuple[Scene, ...] = SCENES) -> Iterator[Tensor]:
    """Yield the videos `B F 3 H W` in [0, 1] of the scenes for each seed."""
    loras = ()
    if lora is not None:
        loras = (ScheduledLora(load_lora(lora, bench.backend.spec).lora, Strengths.from_value(1.0)),)
    for seed in range(SEEDS):
        settings = replace(SAMPLING, seed=1000 * (seed + 1))
        prompts = [scene.prompt for scene in scenes]
        yield generate(bench.backend, prompts, [Variant("video", "", loras)], settings)["video"]
