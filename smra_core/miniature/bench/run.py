"""The bench: every arm on held-out subjects and held-out motions, resumable, its metrics a line a clip.

The folder keeps every LoRA (training goes on where it stopped) and in `clips.jsonl` every measured clip, so
that the same command continues an interrupted bench and repeats nothing.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ...data.motion_clip import MotionClip, read_motion_clip
from ...data.subject_set import SubjectImage, read_subject_set
from ...lora.reader import load_lora
from ...lora.schedule import MOTION_STRENGTHS, ScheduledLora
from ...standalone.backend import StandaloneBackend
from ...standalone.generate import Variant, generate
from ...standalone.progress_bar import TrainingBar
from ...storage.tensor_cache import TensorCache
from ...training.job import TrainedLora
from ...training.motion import train_motion
from ...training.subject import train_subject
from ..held_out_files import write_motion, write_subject
from ..model_files import MINIATURE_FILES
from ..small_settings import MOTION_TRAINING, SUBJECT_TRAINING
from ..weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from ..world.scenes import HELD_OUT_MOTIONS, HELD_OUT_SUBJECTS
from ..world.sprite import FRAMES, SIZE
from .arms import ARMS, SAMPLING, BenchVariant
from .metrics import PROMPT_BACKGROUNDS, clip_figures, prompt_of

log = logging.getLogger("smrabooth")
CLIPS_FILE = "clips.jsonl"


@dataclass(frozen=True)
class BenchSize:
    """How much is measured."""

    subjects: tuple[str, ...] = tuple(HELD_OUT_SUBJECTS)
    motions: tuple[str, ...] = HELD_OUT_MOTIONS
    seeds: int = 3
    clips: int = 6
    """Of every subject, motion and seed."""


FULL = BenchSize()
QUICK = BenchSize(("ball",), ("zigzag",), seeds=1, clips=4)


class Case(NamedTuple):
    """One subject in one motion, with everything trained anew from one seed."""

    subject: str
    motion: str
    seed: int


@dataclass(frozen=True)
class Bench:
    """Where a bench lies, and the models it runs on."""

    folder: Path
    backend: StandaloneBackend

    def images(self, subject: str) -> list[SubjectImage]:
        folder = write_subject(self.folder / "data" / subject, subject)
        return read_subject_set(folder, (SIZE, SIZE)).images

    def clip(self, motion: str) -> MotionClip:
        return read_motion_clip(write_motion(self.folder / "data" / motion, motion), (SIZE, SIZE), FRAMES)


def open_bench(folder: Path) -> Bench:
    folder.mkdir(parents=True, exist_ok=True)
    cache = TensorCache(folder / "cache")
    device = torch.device("cpu")
    return Bench(folder, StandaloneBackend(MINIATURE_FILES, folder / "runs", cache, device, torch.float32))


def run_bench(folder: Path, size: BenchSize = FULL) -> Path:
    """Measure every arm in every case; the path of the file with a line a clip."""
    bench, done = open_bench(folder), finished(folder / CLIPS_FILE)
    for case in cases(size):
        for arm in ARMS:
            if (arm.name, case) in done:
                continue
            log.info("%s: %s %s, seed %d", arm.name, case.subject, case.motion, case.seed)
            lines = list(measured_clips(bench, arm, case, size.clips))
            with open(folder / CLIPS_FILE, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder / CLIPS_FILE


def cases(size: BenchSize) -> Iterator[Case]:
    """Seed by seed, so that an unfinished bench has whole seeds."""
    for seed, subject, motion in itertools.product(range(size.seeds), size.subjects, size.motions):
        yield Case(subject, motion, seed)


def finished(path: Path) -> set[tuple[str, Case]]:
    """Arms and cases whose clips are measured."""
    if not path.is_file():
        return set()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["arm"], Case(line["subject"], line["motion"], line["seed"])) for line in lines}


def measured_clips(bench: Bench, arm: BenchVariant, case: Case, count: int) -> Iterator[dict]:
    """Train what the arm needs, sample its clips, and read them; a dictionary a clip."""
    loras = trained_pair(bench, arm, case)
    backgrounds = [PROMPT_BACKGROUNDS[i % len(PROMPT_BACKGROUNDS)] for i in range(count)]
    prompts = [prompt_of(case.subject, background) for background in backgrounds]
    settings = replace(SAMPLING, seed=10_000 * (case.seed + 1))
    videos = generate(bench.backend, prompts, [Variant(arm.name, "", loras, arm.t_point)], settings)[arm.name]
    for number, (video, background) in enumerate(zip(videos, backgrounds, strict=True)):
        metrics = clip_figures(video, case.subject, case.motion, background)
        yield {
            "arm": arm.name,
            **case._asdict(),
            "clip": number,
            **{k: round(v, 4) for k, v in metrics.items()},
        }


def trained_pair(bench: Bench, arm: BenchVariant, case: Case) -> tuple[ScheduledLora, ...]:
    """The arm's LoRAs, trained from the case's seed or found in the run folder."""
    spec, chosen = bench.backend.spec, []
    if arm.subject is not None:
        trained = _subject(bench, arm, case)
        chosen.append(ScheduledLora(load_lora(trained.path, spec).lora, arm.strengths))
    if arm.motion is not None:
        trained = _motion(bench, arm, case)
        chosen.append(ScheduledLora(load_lora(trained.path, spec).lora, MOTION_STRENGTHS))
    return tuple(chosen)


def _subject(bench: Bench, arm: BenchVariant, case: Case) -> TrainedLora:
    training = replace(SUBJECT_TRAINING, seed=case.seed)
    with TrainingBar(f"{case.subject} subject") as report:
        return train_subject(
            bench.backend, bench.images(case.subject), DINOV2_FILE,
            arm.subject, training, case.subject, report,
        )  # fmt: skip


def _motion(bench: Bench, arm: BenchVariant, case: Case) -> TrainedLora:
    training = replace(MOTION_TRAINING, seed=case.seed)
    with TrainingBar(f"{case.motion} motion") as report:
        return train_motion(
            bench.backend, bench.clip(case.motion), SEA_RAFT_FILE,
            arm.motion, training, case.motion, report,
        )  # fmt: skip
