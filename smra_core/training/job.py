"""One training run on disk: its folder, its LoRA file, and what the file says about itself."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import __version__
from ..lora.adapter import init_lora
from ..lora.metadata import LoraMetadata
from ..lora.writer import save_lora
from ..storage.content_hash import hash_content
from .backend import Backend
from .mora import MotionSample, MotionSettings
from .run_folder import LOSSES, RunFolder
from .state import TrainState
from .sura import SubjectSample, SubjectSettings
from .trainer import Objective, StepInfo, TrainSettings, train_lora

log = logging.getLogger("smrabooth")

LORA_FILE = "lora.safetensors"
FREE_TO_CHANGE = ("steps", "save_every", "save_minutes")
"""Settings that do not change what is learned up to a given step: another value goes on with the same run."""


@dataclass(frozen=True)
class TrainingJob:
    """What to train: an objective over samples, under settings."""

    purpose: str
    """`subject` or `motion`."""
    name: str
    settings: SubjectSettings | MotionSettings
    train: TrainSettings
    samples: Sequence[SubjectSample] | Sequence[MotionSample]
    captions: Sequence[str]
    load_objective: Callable[[], Objective]
    """Called only when there is something left to train, as it may load models."""
    teachers: tuple[str, ...] = ()
    """Content hashes of nets that take part in training itself."""


class TrainedLora(NamedTuple):
    path: Path
    losses: Path
    steps: int


def run_job(
    backend: Backend, job: TrainingJob, on_step: Callable[[StepInfo], None] | None = None
) -> TrainedLora:
    """Train, resume or extend a run; a finished one is returned without loading any model."""
    run = RunFolder(backend.runs, f"{job.purpose}-{job.name}", run_fingerprint(backend, job))
    with run.locked():
        path = run.path / LORA_FILE
        done = run.finished_steps()
        if done >= job.train.steps and path.is_file():
            log.info("%s is trained already (%d steps): %s", job.name, done, path)
            return TrainedLora(path, run.path / LOSSES, done)
        state = _train(backend, job, run, path, on_step)
        run.finish(state.step)
        return TrainedLora(path, run.path / LOSSES, state.step)


def _train(
    backend: Backend,
    job: TrainingJob,
    run: RunFolder,
    path: Path,
    on_step: Callable[[StepInfo], None] | None,
) -> TrainState:
    settings = job.settings
    generator = torch.Generator().manual_seed(job.train.seed)
    lora = init_lora(backend.spec, settings.plan, settings.rank, generator)
    for pair in lora.values():
        pair.to(backend.device)
    objective = job.load_objective()
    with backend.denoiser_for_training() as denoiser:
        state = train_lora(denoiser, lora, objective, job.samples, job.train, run, on_step)
    save_lora(path, lora, _metadata(backend, job, state.step))
    return state


def run_fingerprint(backend: Backend, job: TrainingJob) -> dict[str, Any]:
    """All that a run depends on, as JSON values."""
    train = dataclasses.asdict(job.train)
    return {
        "role": job.purpose,
        "settings": {**dataclasses.asdict(job.settings), "plan": str(job.settings.plan)},
        "train": {name: value for name, value in train.items() if name not in FREE_TO_CHANGE},
        "samples": [_sample_hash(sample) for sample in job.samples],
        **backend.base_fingerprint,
        "teachers": list(job.teachers),
    }


def _sample_hash(sample: SubjectSample | MotionSample) -> str:
    parts = [hash_content(part) for part in sample if isinstance(part, Tensor)]
    return hash_content("\n".join(parts).encode())


def _metadata(backend: Backend, job: TrainingJob, steps: int) -> LoraMetadata:
    return LoraMetadata(
        purpose=job.purpose,
        plan=str(job.settings.plan),
        rank=job.settings.rank,
        base_model=backend.spec.name,
        captions=tuple(dict.fromkeys(job.captions)),
        steps=steps,
        name=job.name,
        version=__version__,
    )
