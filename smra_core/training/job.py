"""Run a training job: find its folder, train or resume, and write the LoRA file with its metadata."""

import logging
import math
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
from ..storage.file_name import make_file_name
from ..wan.condition import list_parts
from ..wan.feed_forward import CHUNK_TOKENS
from ..wan.interfaces import Denoiser
from ..wan.settings import collect_identity
from ..wan.spec import token_grid
from .backend import Backend
from .cost import count_activation_bytes, count_optimizer_bytes
from .followed_run import FollowedRun
from .gradient_share import warn_of_unused_shares
from .kept_blocks import choose_kept_blocks, log_choice, measure_host_memory, measure_spare_memory
from .learning_rate import COSINE
from .mora import MotionSample
from .motion_settings import MotionSettings
from .objective import Objective
from .preservation import PRESERVE
from .ranks import Ranks
from .run_folder import LOSSES, RunFolder
from .state import TrainState
from .step_info import StepInfo
from .sura import SubjectSample, SubjectSettings
from .train_settings import TrainSettings
from .trainer import train_lora

log = logging.getLogger("smrabooth")

LORA_FILE = "lora.safetensors"
NOT_IN_FINGERPRINT = ("steps", "save_every", "save_minutes", "keep_every", "held_out_every")
"""Settings that do not change what is learned up to a given step: with another value the same run is
resumed. A cosine ends with the steps, so that they are then in it.
"""


@dataclass(frozen=True)
class TrainingJob:
    """Description of a training run: an objective, its samples, and the settings."""

    purpose: str
    """Purpose of the LoRA: `subject` or `motion`."""
    name: str
    settings: SubjectSettings | MotionSettings
    train: TrainSettings
    samples: Sequence[SubjectSample] | Sequence[MotionSample]
    captions: Sequence[str]
    load_objective: Callable[[], Objective]
    """Function that returns the objective. It is called only if steps remain to be trained, because it may
    load models.
    """
    encoders: tuple[str, ...] = ()
    """Content hashes of the frozen nets that take part in training itself."""
    held_out: Sequence[SubjectSample] | Sequence[MotionSample] = ()
    """Samples that are measured and not trained on."""
    decode_bytes: float = 0.0
    """Peak of a step's activations in half precision where it decodes; 0 where it does not."""


class TrainedLora(NamedTuple):
    """Files of a finished run."""

    path: Path
    """File of the LoRA."""
    losses: Path
    """Table of the losses (see run_folder.read_losses)."""
    steps: int
    """Number of trained steps."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on what is not as asked for."""
    name: str = ""
    """Name of the LoRA, with the expert of Wan 2.2 that it is for."""


def run_job(
    backend: Backend, job: TrainingJob, on_step: Callable[[StepInfo], None] | None = None
) -> TrainedLora:
    """Train, resume or extend a run; a finished run is returned without loading any model.

    Of several ranks the first one writes, and all return when the file is there. ValueError if another
    process trains the same run.
    """
    ranks = backend.ranks
    kind = RunFolder if ranks.is_first else FollowedRun
    run = kind(backend.runs, f"{job.purpose}-{make_file_name(job.name)}", run_fingerprint(backend, job))
    with run.locked():
        _check_same_run(ranks, run)
        path = run.path / LORA_FILE
        finished_steps = ranks.share(run.read_finished_steps() if path.is_file() else 0)
        if finished_steps >= job.train.steps:
            log.info("%s is trained already (%d steps): %s", job.name, finished_steps, path)
            return _describe_result(job, run, finished_steps)
        _log_cache(backend)
        state = _train(backend, job, run, on_step)
        if ranks.is_first:
            save_lora(path, state.publish(), _make_metadata(backend, job, state.step))
            run.finish(state.step)
        ranks.gather(None)
        return _describe_result(job, run, state.step)


def _check_same_run(ranks: Ranks, run: RunFolder) -> None:
    """Raise ValueError if the ranks would train different runs; return when the first one holds the lock."""
    if len(set(ranks.gather(run.fingerprint))) > 1:
        raise ValueError(
            "The processes would train different runs: they see different data, models or settings. Give all "
            "of them the same files and options."
        )


def _log_cache(backend: Backend) -> None:
    """Log how much of what the encoders make was kept by earlier runs, such as that of the other expert."""
    hits, misses = backend.cache.hits, backend.cache.misses
    log.info("Latents, features and flows: %d encoded anew, %d read from the cache.", misses, hits)


def _describe_result(job: TrainingJob, run: RunFolder, steps: int) -> TrainedLora:
    notes = _note_more_steps(job, steps)
    return TrainedLora(run.path / LORA_FILE, run.path / LOSSES, steps, notes, make_file_name(job.name))


def _note_more_steps(job: TrainingJob, steps: int) -> tuple[str, ...]:
    """Return a note, which is also logged, if the run has more steps than were asked for."""
    if steps <= job.train.steps:
        return ()
    note = (
        f"{job.name!r} has {steps} trained steps already, more than the {job.train.steps} asked for, and "
        f"this is the LoRA of {steps} steps. Give another name to train one of {job.train.steps} steps."
    )
    log.warning("%s", note)
    return (note,)


def check_precision(backend: Backend) -> None:
    """Raise ValueError for float16: the gradient of the flow loss with respect to a pixel is about 1e-10,
    which float16 rounds to zero, and the gradients inside of the DiT would need scaling.
    """
    if backend.dtype == torch.float16:
        raise ValueError(
            "float16 cannot be trained in, because its smallest number is larger than the gradients of the "
            "flow loss. Give --dtype bfloat16, or float32 on a device without bfloat16."
        )


def _train(
    backend: Backend,
    job: TrainingJob,
    run: RunFolder,
    on_step: Callable[[StepInfo], None] | None,
) -> TrainState:
    """Train the run's remaining steps."""
    settings = job.settings
    generator = torch.Generator().manual_seed(job.train.seed)
    lora = init_lora(backend.spec, settings.plan, settings.rank, generator)
    for pair in lora.values():
        pair.to(backend.device)
    objective = job.load_objective()
    warn_of_unused_shares(objective.weights, objective.shares)

    def keep(state: TrainState) -> Path:
        kept = run.path / f"{make_file_name(job.name)}_{state.step}.safetensors"
        save_lora(kept, state.publish(), _make_metadata(backend, job, state.step))
        log.info("Kept the LoRA of step %d: %s", state.step, kept)
        return kept

    parameters = [*objective.trainables().values(), *torch.nn.ModuleList(lora.values()).parameters()]
    step_bytes = _count_step_bytes(backend, job, parameters)
    with backend.denoiser_for_training(step_bytes) as denoiser:
        _keep_blocks(denoiser, backend, job, step_bytes, _count_free_blocks(job, objective))
        first = backend.ranks.is_first
        return train_lora(
            denoiser, lora, objective, job.samples, job.train, run, on_step if first else None,
            job.held_out if first else (), keep if first else None, backend.ranks,
        )  # fmt: skip


def _count_step_bytes(backend: Backend, job: TrainingJob, parameters: Sequence[Tensor]) -> float:
    """Return the bytes of a step's activations if no block keeps any, and of what is trained."""
    batch, value_bytes = job.train.batch_size, backend.dtype.itemsize
    activations = count_activation_bytes(backend.spec, _count_tokens(job), batch, value_bytes)
    activations = max(activations, job.decode_bytes * batch * value_bytes / torch.bfloat16.itemsize)
    return activations + count_optimizer_bytes(sum(parameter.numel() for parameter in parameters))


def _count_tokens(job: TrainingJob) -> int:
    """Return the tokens of the largest sample."""
    return max(math.prod(token_grid(sample.latents.shape)) for sample in job.samples)


def _count_free_blocks(job: TrainingJob, objective: Objective) -> int:
    """Return how many blocks can be kept whole at no cost: none if anything else runs before the backward
    pass has freed them, such as a decoder, base preservation, or the backward pass of a loss with a share;
    and none where a recomputed block takes less memory, as its feed-forward net is in chunks.
    """
    has_more = job.decode_bytes or objective.weights.get(PRESERVE) or any(objective.shares.values())
    is_in_chunks = _count_tokens(job) * job.train.batch_size > CHUNK_TOKENS
    return 0 if has_more or is_in_chunks else 1


def _keep_blocks(
    denoiser: Denoiser, backend: Backend, job: TrainingJob, step_bytes: float, free: int
) -> None:
    """Let as many blocks keep activations as memory allows; the results stay the same."""
    spec, batch, value_bytes = backend.spec, job.train.batch_size, backend.dtype.itemsize
    spare, host = measure_spare_memory(backend.device, step_bytes), measure_host_memory(backend.device)
    tokens = _count_tokens(job)
    denoiser.kept_blocks = choose_kept_blocks(spec, tokens, batch, value_bytes, spare, free, host)
    log_choice(denoiser.kept_blocks, spec, spare)


def run_fingerprint(backend: Backend, job: TrainingJob) -> dict[str, Any]:
    """Return all that a run depends on, as JSON values; the run folder's name is their hash."""
    # The keys "role" and "teachers" are older than the words of the code. Another key would be another run.
    train = collect_identity(job.train)
    left_out = set(NOT_IN_FINGERPRINT) - ({"steps"} if job.train.lr_schedule == COSINE else set())
    return {
        "role": job.purpose,
        "settings": collect_identity(job.settings),
        "train": {name: value for name, value in train.items() if name not in left_out},
        "samples": [_hash_sample(sample) for sample in job.samples],
        **backend.base_fingerprint,
        "teachers": list(job.encoders),
    }


def _hash_sample(sample: SubjectSample | MotionSample) -> str:
    # `given` follows from the extra inputs, of which text to video has none.
    tensors = [
        part for name, part in sample._asdict().items() if name != "given" and isinstance(part, Tensor)
    ]
    hashes = [hash_content(part) for part in tensors]
    for name, part in list_parts(sample.extra):
        hashes.append(f"{name} {hash_content(part) if isinstance(part, Tensor) else repr(part)}")
    return hash_content("\n".join(hashes).encode())


def _make_metadata(backend: Backend, job: TrainingJob, steps: int) -> LoraMetadata:
    return LoraMetadata(
        purpose=job.purpose,
        plan=str(job.settings.plan),
        rank=job.settings.rank,
        base_model=backend.spec.name,
        captions=tuple(dict.fromkeys(job.captions)),
        steps=steps,
        name=job.name,
        version=__version__,
        noise_range="" if job.settings.noise_range.is_whole else str(job.settings.noise_range),
    )
