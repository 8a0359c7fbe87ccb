"""Check of the meters: LoRAs that were planted to leak or to still must rank worse than clean ones.

A clean motion LoRA has the paper's layers; a leaky one was trained too long on its clip, in all layers. A
clean subject LoRA has the paper's layers; a stilling one was trained too long on its pictures, in all layers.
A pair is trained from one seed. The folder keeps every LoRA, and in `leak.jsonl` and `stillness.jsonl` a line
for each pair.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

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

SEEDS = 2
"""Seeds of the videos of each LoRA."""
LEAK_PROMPTS = ("a circle vvt moving", "a triangle vvt moving")
"""Prompts with the motion's own words that leave color and background open, where a leak shows: of prompts
that name them, or that lack the motion's words, the planted LoRA of one of two clips leaked no more.
"""
SCENES = (
    Scene("circle", "green", "plain", "gray", "left"),
    Scene("triangle", "yellow", "striped", "maroon", "up"),
)
"""Scenes in which something moves. For stillness the subject takes the place of the shape: without its word a
subject LoRA changes little.
"""
CLEAN_STEPS, LONG_STEPS = 30, 150
"""Training steps of a clean LoRA and of a planted one."""
PLANTED_SAMPLING = replace(SAMPLING, steps=8)
PICTURES_AT_ONCE = 4
"""Batch size of the subjects' trainings, half of the demo's: 20 pairs take a quarter of an hour of a CPU."""
_SUBJECTS = tuple(HELD_OUT_SUBJECTS)


def run_planted(folder: Path, pairs: int) -> str:
    """Measure pairs of clean and planted LoRAs; return how often each meter ranks the planted one worse."""
    for name in METERS:
        measure_pairs(folder, name, pairs)
    return describe_ranking(folder)


def measure_pairs(folder: Path, name: str, pairs: int) -> None:
    """Measure the pairs of a meter that are not in its file yet."""
    bench, path = open_bench(folder), folder / f"{name}.jsonl"
    done = len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
    for seed in range(done, pairs):
        line = json.dumps({"seed": seed, **METERS[name].measure(bench, seed)})
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def describe_ranking(folder: Path) -> str:
    """Return for each meter how often the planted LoRA of a pair ranked worse."""
    sentences = []
    for name, meter in METERS.items():
        text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        worse = sum(meter.is_right(line) for line in lines)
        sentences.append(f"{name}: the planted LoRA ranked worse in {worse} of {len(lines)} pairs")
    return f"{'; '.join(sentences)} ({SEEDS} seeds of 2 prompts each)."


def measure_leaks(bench: Bench, seed: int) -> dict[str, float]:
    """Return the leaks of a clean and of a leaky motion LoRA that are trained from one seed."""
    clip = bench.write_clip(HELD_OUT_MOTIONS[seed % len(HELD_OUT_MOTIONS)])
    meter = LeakMeter(load_dinov2(DINOV2_FILE), load_sea_raft(SEA_RAFT_FILE), clip.frames)
    # MoRA holds no look, and decoding takes most of the time.
    settings = replace(MOTION, mora_weight=0.0, mora_share=0.0)
    leaks = {}
    for name, steps, chosen in (
        ("clean", CLEAN_STEPS, settings),
        ("leaky", LONG_STEPS, replace(settings, plan=ALL_LAYERS)),
    ):
        training = replace(MOTION_TRAINING, steps=steps, seed=seed)
        with TrainingBar(f"{name} motion") as report:
            trained = train_motion(bench.backend, [clip], SEA_RAFT_FILE, chosen, training, name, report)
        videos = list(sample_seeds(bench, trained.path, LEAK_PROMPTS))
        leak = meter.measure(videos, sample_bases(bench, LEAK_PROMPTS))
        leaks |= {name: leak.overall.mean, f"{name} actor": leak.actor.mean}
    return leaks


def measure_stilling(bench: Bench, seed: int) -> dict[str, float]:
    """Return the motion that a clean and a stilling subject LoRA leave, both trained from one seed."""
    subject = _SUBJECTS[seed % len(_SUBJECTS)]
    images = bench.write_images(subject)
    prompts = tuple(replace(scene, subject=subject).prompt for scene in SCENES)
    sea_raft, motion = load_sea_raft(SEA_RAFT_FILE), {}
    for name, steps, chosen in (
        ("moving", CLEAN_STEPS, replace(SUBJECT, sura_weight=0.0)),
        ("stilling", LONG_STEPS, replace(SUBJECT, sura_weight=0.0, plan=ALL_LAYERS)),
    ):
        training = replace(SUBJECT_TRAINING, steps=steps, seed=seed, batch_size=PICTURES_AT_ONCE)
        with TrainingBar(f"{name} subject") as report:
            trained = train_subject(bench.backend, images, DINOV2_FILE, chosen, training, name, report)
        videos = list(sample_seeds(bench, trained.path, prompts))
        motion[name] = measure_stillness(sea_raft, videos, sample_bases(bench, prompts)).motion.mean
    return motion


@cache
def sample_bases(bench: Bench, prompts: tuple[str, ...]) -> list[Tensor]:
    """Sample the prompts without any LoRA, `B F 3 H W` in [0, 1] for each seed."""
    return list(sample_seeds(bench, None, prompts))


def sample_seeds(bench: Bench, lora: Path | None, prompts: Sequence[str]) -> Iterator[Tensor]:
    """Yield the videos `B F 3 H W` in [0, 1] of the prompts for each seed."""
    loras = ()
    if lora is not None:
        loras = (ScheduledLora(load_lora(lora, bench.backend.spec).lora, Strengths.from_value(1.0)),)
    for seed in range(SEEDS):
        settings = replace(PLANTED_SAMPLING, seed=1000 * (seed + 1))
        yield generate(bench.backend, prompts, [Variant("video", "", loras)], settings)["video"]


class Meter(NamedTuple):
    """A meter that is checked: how a pair is measured, and whether its line ranks the planted LoRA worse."""

    measure: Callable[[Bench, int], dict[str, float]]
    is_right: Callable[[dict[str, float]], bool]


METERS = {
    "leak": Meter(measure_leaks, lambda line: line["leaky"] > line["clean"]),
    "stillness": Meter(measure_stilling, lambda line: line["stilling"] < line["moving"]),
}
