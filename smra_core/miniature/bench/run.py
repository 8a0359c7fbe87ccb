"""The bench: every variant on held-out subjects and held-out motions.

The folder keeps every LoRA, so that training goes on where it stopped, and in `clips.jsonl` a line with the
metrics of every measured clip. The same command continues an interrupted bench and repeats nothing.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...data.motion_clip import MotionClip, read_motion_clip
from ...data.subject_set import SubjectImage, read_subject_set
from ...lora.reader import load_lora
from ...lora.schedule import ScheduledLora
from ...standalone.backend import StandaloneBackend
from ...standalone.generate import Variant, generate
from ...standalone.progress_bar import TrainingBar
from ...storage.tensor_cache import TensorCache
from ...training.job import TrainedLora
from ...training.motion import train_motion
from ...training.motion_settings import MotionSettings
from ...training.subject import train_subject
from ...training.sura import SubjectSettings
from ..held_out_files import write_motion, write_subject
from ..model_files import MINIATURE_FILES
from ..small_settings import MOTION_TRAINING, SUBJECT_TRAINING
from ..weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from ..world.scenes import HELD_OUT_MOTIONS, HELD_OUT_SUBJECTS
from ..world.sprite import FRAMES, SIZE
from .joint_training import train_pair_jointly
from .metrics import PROMPT_BACKGROUNDS, make_prompt, measure_clip
from .variants import SAMPLING, VARIANTS, BenchVariant

log = logging.getLogger("smrabooth")
CLIPS_FILE = "clips.jsonl"


@dataclass(frozen=True)
class BenchSize:
    """Subjects, motions, seeds and clips that are measured."""

    subjects: tuple[str, ...] = tuple(HELD_OUT_SUBJECTS)
    motions: tuple[str, ...] = HELD_OUT_MOTIONS
    seeds: int = 3
    clips: int = 6
    """Number of clips for every subject, motion and seed."""


FULL = BenchSize()
QUICK = BenchSize(("ball",), ("zigzag",), seeds=1, clips=4)


class Case(NamedTuple):
    """One subject in one motion; its LoRAs are trained from one seed."""

    subject: str
    motion: str
    seed: int


@dataclass(frozen=True)
class Bench:
    """The folder of a bench, and the miniature that it runs on."""

    folder: Path
    backend: StandaloneBackend

    def write_images(self, subject: str) -> list[SubjectImage]:
        """Write the pictures of a held-out subject to the folder, and read them as a user's are read."""
        folder = write_subject(self.folder / "data" / subject, subject)
        return read_subject_set(folder, (SIZE, SIZE)).images

    def write_clip(self, motion: str) -> MotionClip:
        """Write the clip of a held-out motion to the folder, and read it as a user's is read."""
        return read_motion_clip(write_motion(self.folder / "data" / motion, motion), (SIZE, SIZE), FRAMES)


def open_bench(folder: Path) -> Bench:
    """Make the folder of a bench, and choose the miniature on the CPU in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    cache = TensorCache(folder / "cache")
    device = torch.device("cpu")
    return Bench(folder, StandaloneBackend(MINIATURE_FILES, folder / "runs", cache, device, torch.float32))


def run_bench(folder: Path, size: BenchSize = FULL) -> Path:
    """Measure every variant in every case; return the path of the file with a line for each clip."""
    bench, finished = open_bench(folder), read_finished(folder / CLIPS_FILE)
    for case in list_cases(size):
        for variant in VARIANTS:
            if (variant.name, case) in finished:
                continue
            log.info("%s: %s %s, seed %d", variant.name, case.subject, case.motion, case.seed)
            lines = list(measure_case(bench, variant, case, size.clips))
            with open(folder / CLIPS_FILE, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder / CLIPS_FILE


def list_cases(size: BenchSize) -> Iterator[Case]:
    """List the cases seed by seed, so that an unfinished bench has whole seeds."""
    for seed, subject, motion in itertools.product(range(size.seeds), size.subjects, size.motions):
        yield Case(subject, motion, seed)


def read_finished(path: Path) -> set[tuple[str, Case]]:
    """Read the variants and cases whose clips are measured; none where there is no file yet."""
    if not path.is_file():
        return set()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["variant"], Case(line["subject"], line["motion"], line["seed"])) for line in lines}


def measure_case(bench: Bench, variant: BenchVariant, case: Case, count: int) -> Iterator[dict]:
    """Train the variant's LoRAs, sample `count` clips and measure them; yield a dictionary for each clip."""
    for number, (video, background) in enumerate(sample_case(bench, variant, case, count)):
        metrics = measure_clip(video, case.subject, case.motion, background)
        yield {
            "variant": variant.name,
            **case._asdict(),
            "clip": number,
            **{name: round(value, 4) for name, value in metrics.items()},
        }


def sample_case(bench: Bench, variant: BenchVariant, case: Case, count: int) -> list[tuple[Tensor, str]]:
    """Train the variant's LoRAs and sample `count` clips `F 3 H W` in [0, 1], each with the background that
    its prompt names.
    """
    loras = train_pair(bench, variant, case)
    backgrounds = [PROMPT_BACKGROUNDS[i % len(PROMPT_BACKGROUNDS)] for i in range(count)]
    prompts = [make_prompt(case.subject, background) for background in backgrounds]
    settings = replace(SAMPLING, seed=10_000 * (case.seed + 1))
    sampled = Variant(variant.name, "", loras, variant.t_point)
    videos = generate(bench.backend, prompts, [sampled], settings)[variant.name]
    return list(zip(videos, backgrounds, strict=True))


def train_pair(bench: Bench, variant: BenchVariant, case: Case) -> tuple[ScheduledLora, ...]:
    """Train the variant's LoRAs from the case's seed, or load them where the run folder has them."""
    if variant.joint and variant.subject is not None and variant.motion is not None:
        subject = bench.write_images(case.subject), variant.subject, variant.strengths
        return train_pair_jointly(
            bench.backend, subject, (bench.write_clip(case.motion), variant.motion), case.seed
        )
    spec, loras = bench.backend.spec, []
    if variant.subject is not None:
        trained = train_case_subject(bench, variant.subject, case, variant.pictures)
        loras.append(ScheduledLora(load_lora(trained.path, spec).lora, variant.strengths))
    if variant.motion is not None:
        trained = train_case_motion(bench, variant.motion, case)
        loras.append(ScheduledLora(load_lora(trained.path, spec).lora, variant.motion_strengths))
    return tuple(loras)


def train_case_subject(
    bench: Bench, settings: SubjectSettings, case: Case, pictures: int | None = None
) -> TrainedLora:
    training = replace(SUBJECT_TRAINING, seed=case.seed)
    images = bench.write_images(case.subject)[:pictures]
    with TrainingBar(f"{case.subject} subject") as report:
        return train_subject(bench.backend, images, DINOV2_FILE, settings, training, case.subject, report)


def train_case_motion(bench: Bench, settings: MotionSettings, case: Case) -> TrainedLora:
    training = replace(MOTION_TRAINING, seed=case.seed)
    clip = bench.write_clip(case.motion)
    with TrainingBar(f"{case.motion} motion") as report:
        return train_motion(bench.backend, [clip], SEA_RAFT_FILE, settings, training, case.motion, report)
