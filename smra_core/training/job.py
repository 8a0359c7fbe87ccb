"""One training run on disk: its folder, its LoRA file, and what the file says about itself."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import __version__
from ..lora.adapter import init_lora
from ..lora.reader import LoraMetadata, save_lora
from ..storage.tensor_cache import content_hash
from ..wan.interfaces import Denoiser
from ..wan.spec import WanSpec
from .mora import MotionSample, MotionSettings
from .run_folder import LOSSES, RunFolder
from .state import TrainState
from .sura import SubjectSample, SubjectSettings
from .trainer import Objective, StepInfo, TrainSettings, train_lora

log = logging.getLogger("smrabooth")

LORA_FILE = "lora.safetensors"
FREE_TO_CHANGE = ("steps", "save_every", "save_minutes")
"""Settings that do not change what is learnt up to a given step: another value goes on with the same run."""


class TrainingPlace(Protocol):
    """A WAN model on a device, and a folder for runs: files here (workplace.py), the graph's in ComfyUI."""

    @property
    def runs(self) -> Path: ...

    @property
    def device(self) -> torch.device: ...

    def spec(self) -> WanSpec: ...

    def base_identity(self) -> dict[str, str]:
        """What identifies the frozen model and how it computes, as JSON values."""
        ...

    def denoiser_for_training(self) -> AbstractContextManager[Denoiser]:
        """The model, loaded for the block's duration; memory is short."""
        ...


@dataclass(frozen=True)
class TrainingJob:
    """What to train: an objective over samples, under settings."""

    role: str
    """`subject` or `motion`."""
    name: str
    settings: SubjectSettings | MotionSettings
    train: TrainSettings
    samples: Sequence[SubjectSample] | Sequence[MotionSample]
    captions: Sequence[str]
    make_objective: Callable[[], Objective]
    """Called only when there is something left to train, as it may load models."""
    teachers: tuple[str, ...] = ()
    """Content hashes of nets that take part in training itself."""


class TrainedLora(NamedTuple):
    path: Path
    losses: Path
    steps: int


def run_job(
    place: TrainingPlace, job: TrainingJob, on_step: Callable[[StepInfo], None] | None = None
) -> TrainedLora:
    """Train, resume or extend a run; a finished one is returned without loading any model."""
    run = RunFolder(place.runs, f"{job.role}-{job.name}", fingerprint(place, job))
    with run.locked():
        path = run.path / LORA_FILE
        done = run.finished_steps()
        if done >= job.train.steps and path.is_file():
            log.info("%s is trained already (%d steps): %s", job.name, done, path)
            return TrainedLora(path, run.path / LOSSES, done)
        state = _train(place, job, run, path, on_step)
        run.finish(state.step)
        return TrainedLora(path, run.path / LOSSES, state.step)


def _train(
    place: TrainingPlace,
    job: TrainingJob,
    run: RunFolder,
    path: Path,
    on_step: Callable[[StepInfo], None] | None,
) -> TrainState:
    settings = job.settings
    generator = torch.Generator().manual_seed(job.train.seed)
    lora = init_lora(place.spec(), settings.plan, settings.rank, generator)
    for pair in lora.values():
        pair.to(place.device)
    objective = job.make_objective()
    with place.denoiser_for_training() as denoiser:
        state = train_lora(denoiser, lora, objective, job.samples, job.train, run, on_step)
    save_lora(path, lora, _metadata(place, job, state.step))
    return state


def fingerprint(place: TrainingPlace, job: TrainingJob) -> dict[str, Any]:
    """All that a run depends on, as JSON values."""
    train = dataclasses.asdict(job.train)
    return {
        "role": job.role,
        "settings": {**dataclasses.asdict(job.settings), "plan": str(job.settings.plan)},
        "train": {name: value for name, value in train.items() if name not in FREE_TO_CHANGE},
        "samples": [_sample_hash(sample) for sample in job.samples],
        **place.base_identity(),
        "teachers": list(job.teachers),
    }


def _sample_hash(sample: SubjectSample | MotionSample) -> str:
    parts = [content_hash(part) for part in sample if isinstance(part, Tensor)]
    return content_hash("\n".join(parts).encode())


def _metadata(place: TrainingPlace, job: TrainingJob, steps: int) -> LoraMetadata:
    return LoraMetadata(
        role=job.role,
        plan=str(job.settings.plan),
        rank=job.settings.rank,
        base_model=place.spec().name,
        captions=tuple(dict.fromkeys(job.captions)),
        steps=steps,
        name=job.name,
        version=__version__,
    )
