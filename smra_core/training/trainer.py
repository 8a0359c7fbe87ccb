"""The training loop, one for all objectives."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..lora.adapter import Injection, Lora, injected
from ..wan.flow_matching import sample_training_sigma
from ..wan.interfaces import Denoiser
from ..wan.settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Limits, check_limits, declare_setting
from .batches import Sample, choose_batch, collate, move_to_device
from .gradient_share import backpropagate
from .held_out import measure_held_out
from .learning_rate import CONSTANT, COSINE, LR_SCHEDULES, learning_rate_factor
from .noise_bands import NoiseBands
from .objective import Objective
from .optimizer import ADAMW, LEAST_PRODIGY_RATE, OPTIMIZERS, PRODIGY
from .preservation import BaseModel
from .random_stream import make_generator
from .ranks import ALONE, Ranks
from .run_folder import RunFolder
from .state import TrainState

log = logging.getLogger("smrabooth")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training loop."""

    steps: int = declare_setting(
        1000,
        "Training steps. More fit the data more closely, in the end too closely; raising it later extends "
        "the run.",
        COUNT,
    )
    batch_size: int = declare_setting(
        1,
        "Samples that go through the model at once. More give steadier steps and need more memory.",
        COUNT,
    )
    accumulate: int = declare_setting(
        2,
        "Batches that one step averages over. More give steadier steps and need more time.",
        COUNT,
    )
    learning_rate: float = declare_setting(
        1e-4,
        "Size of a step. Higher learns faster, and too high breaks the model; the paper's is 1e-4.",
        POSITIVE,
    )
    weight_decay: float = declare_setting(
        0.01,
        "AdamW's weight decay. Higher values keep the LoRA weaker and forget details.",
        NOT_NEGATIVE,
    )
    grad_clip: float = declare_setting(
        1.0, "Gradient norm above which a step is scaled down. 0 turns clipping off.", NOT_NEGATIVE
    )
    seed: int = declare_setting(0, "Random seed. Changing it starts a new run.", SEED)
    save_every: int = declare_setting(
        50,
        "Steps between two saved states. Raising it writes less often; a hard kill then loses more steps.",
        COUNT,
    )
    save_minutes: float = declare_setting(
        5.0,
        "Minutes after which the state is saved in any case. Raising it risks more work on slow cards.",
        Limits(most=math.inf, above=0),
    )
    optimizer: str = declare_setting(
        ADAMW,
        "Optimizer: 'adamw'; 'adamw-8bit', which keeps its state in a quarter of the memory and needs the "
        "package bitsandbytes; or 'prodigy', which finds the learning rate itself, wants learning_rate 1 "
        "and needs the package prodigyopt.",
        newer=True,
    )
    lr_schedule: str = declare_setting(
        CONSTANT,
        "Learning rate over the run: 'constant', or 'cosine', which falls to 0 at the last step and "
        "settles details. With 'cosine' another number of steps is another run.",
        newer=True,
    )
    warmup_steps: int = declare_setting(
        0,
        "Steps in which the learning rate rises to its full size. More protect the start of a run from "
        "too large steps.",
        NOT_NEGATIVE,
        newer=True,
    )
    ema_decay: float = declare_setting(
        0.0,
        "Share of the past that the moving average (EMA) of the LoRA keeps in a step; the average is what "
        "is saved. Higher averages over more steps, 0.99 over about 100, and 0 turns it off.",
        Limits(least=0, most=0.99999),
        newer=True,
    )
    keep_every: int = declare_setting(
        0,
        "Steps between two LoRA files that are kept on the way, to compare how far a run should go. Fewer "
        "keep more files; 0 keeps the last one alone.",
        NOT_NEGATIVE,
        newer=True,
    )
    held_out_every: int = declare_setting(
        0,
        "Steps between two measurements of the loss on the last item, which is then left out of training: "
        "it rises when the LoRA learns the others by heart. Fewer take more time; 0 trains on all.",
        NOT_NEGATIVE,
        newer=True,
    )

    def __post_init__(self):
        check_limits(self)
        for name, known in (("optimizer", OPTIMIZERS), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is not known; give one of {', '.join(known)}."
                )
        if self.optimizer == PRODIGY and self.learning_rate < LEAST_PRODIGY_RATE:
            raise ValueError(
                f"optimizer 'prodigy' finds the learning rate itself and multiplies it by learning_rate, "
                f"which is {self.learning_rate}. Set learning_rate to 1."
            )
        if self.lr_schedule == COSINE and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} of {self.steps} steps, which leaves none for the "
                "cosine. Give fewer, or lr_schedule 'constant'."
            )


SUBJECT_TRAIN = TrainSettings()
MOTION_TRAIN = TrainSettings(steps=400)
"""Defaults for a subject and for a motion, whose data is a single clip: 400 steps that average over 2 are 800
samples of it. The paper gives no number; the authors' release takes 400 samples of each picture, and 500 of
a clip.
"""


class StepInfo(NamedTuple):
    """Report of a finished step."""

    step: int
    """Number of the step, from 1."""
    steps: int
    """Number of steps of the whole run."""
    losses: dict[str, float]
    """Losses by name, unweighted, averaged over the step's samples."""
    total: float
    """Weighted sum of the losses."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    seconds: float
    """Time that the step took."""
    by_noise: dict[str, float | None]
    """Each loss by band of noise (see NoiseBands); None for a band that none of the step's samples is in."""
    held_out: dict[str, float] = {}
    """Losses of the item that is left out, before the step; empty in steps in which they are not measured."""
    kept: Path | None = None
    """LoRA file that was kept after the step, or None."""


class MicroBatch(NamedTuple):
    """What is known of a micro-batch after its backward pass."""

    names: list[str]
    """Names of its samples."""
    sigma: Tensor
    """Noise levels `B` of the samples, on the CPU."""
    losses: dict[str, Tensor]
    """Losses by name, `B` each, detached and still on the device."""


Losses = dict[str, list[float]]
"""Losses of a step by name, one number for each sample of all its micro-batches."""


class NonFiniteLoss(ValueError):
    """Error for a loss or gradient that is infinite or not a number; its step was not applied."""


class NoGradient(ValueError):
    """Error for adapters without a gradient, which would never be trained."""


def train_lora(
    denoiser: Denoiser,
    lora: Lora,
    objective: Objective,
    samples: Sequence[Sample],
    settings: TrainSettings,
    run: RunFolder | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    held_out: Sequence[Sample] = (),
    keep: Callable[[TrainState], Path] | None = None,
    ranks: Ranks = ALONE,
) -> TrainState:
    """Train the LoRA in place; with a run folder, resume from its state and keep the state up to date.

    `held_out` are samples that are measured and not trained on; `keep` writes the LoRA file of a step that is
    to be kept. Of several `ranks`, each computes a part of every step's batches.

    Whatever ends the loop (the last step, an exception from `on_step`, an interrupt, out of memory), the
    model is restored and the last finished step is saved. All randomness of a step comes from the seed and
    the step's number, so that a resumed run repeats an uninterrupted one. Raises NonFiniteLoss, NoGradient,
    torch.OutOfMemoryError with the objective's advice, and RankLost.
    """
    state = TrainState(
        lora,
        objective.trainables(),
        settings.learning_rate,
        settings.weight_decay,
        settings.optimizer,
        settings.ema_decay,
    )
    if run is not None:
        run.restore(state)
    is_updating, saved_at, injection = False, time.monotonic(), Injection(lora)
    objective.base = BaseModel(denoiser, injection)
    try:
        with injected(denoiser.linears(), injection):
            while state.step < settings.steps:
                started = time.monotonic()
                step = state.step + 1
                measured = _measure_held_out(denoiser, objective, state, settings, held_out)
                state.optimizer.zero_grad(set_to_none=True)
                batches = _accumulate(denoiser, lora, objective, samples, settings, step, ranks)
                ranks.sum_gradients(state.parameters.values())
                losses, grad_norm = _fetch_losses(batches, measure_gradient(state.parameters))
                _check_finite(objective, [name for batch in batches for name in batch.names], losses, step)
                _clip_gradient(state, grad_norm, settings, step)
                if step == 1:
                    _check_gradients(lora)
                is_updating = True
                state.update(_find_rate_factor(settings, step))
                state.step, is_updating = step, False
                info = _make_step_info(
                    settings, objective, batches, losses, grad_norm, step, time.monotonic() - started
                )._replace(held_out=measured)
                if keep is not None and settings.keep_every and step % settings.keep_every == 0:
                    info = info._replace(kept=keep(state))
                if run is not None:
                    run.log_losses(step, {"total": info.total, **info.losses, **info.by_noise, **measured})
                    unsaved = time.monotonic() - saved_at
                    if step % settings.save_every == 0 or unsaved >= 60 * settings.save_minutes:
                        run.save(state)
                        saved_at = time.monotonic()
                if on_step is not None:
                    on_step(info)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            f"Out of memory in step {state.step + 1}; the steps before are kept. {objective.memory_advice}"
        ) from error
    finally:
        objective.base = None
        # A step interrupted inside of the optimizer leaves a half-updated state, which must not be saved.
        if run is not None and state.step and not is_updating:
            run.save(state)
    return state


def _find_rate_factor(settings: TrainSettings, step: int) -> float:
    return learning_rate_factor(step, settings.steps, settings.warmup_steps, settings.lr_schedule)


def _measure_held_out(
    denoiser: Denoiser,
    objective: Objective,
    state: TrainState,
    settings: TrainSettings,
    held_out: Sequence[Sample],
) -> dict[str, float]:
    """Measure the samples that are left out, before the first step and before every `held_out_every`th."""
    step = state.step + 1
    if not held_out or not settings.held_out_every or (step > 1 and step % settings.held_out_every):
        return {}
    device = next(iter(state.parameters.values())).device
    with state.averaged():
        return measure_held_out(denoiser, objective, held_out, settings.seed, device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: on CUDA an error of its own, on a CPU and on Apple's GPUs a plain one."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(text in words for text in _OUT_OF_MEMORY)


_CLIP_EPSILON = 1e-6
"""What torch's clip_grad_norm_ adds to the norm that it divides by."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Words in torch's errors on a CPU (of Linux and of Windows) and on Apple's GPUs."""


def _accumulate(
    denoiser: Denoiser,
    lora: Lora,
    objective: Objective,
    samples: Sequence[Sample],
    settings: TrainSettings,
    step: int,
    ranks: Ranks,
) -> list[MicroBatch]:
    """Accumulate the gradients of this rank's micro-batches of a step; return those of all ranks.

    A rank that is alone does not wait for the device.
    """
    parameters = [parameter for pair in lora.values() for parameter in pair.parameters()]
    device = parameters[0].device
    batches = []
    for micro_batch in ranks.take_batches(settings.accumulate):
        number = (step - 1) * settings.accumulate + micro_batch
        batch_samples = choose_batch(samples, settings.batch_size, settings.seed, number)
        batch = move_to_device(collate(batch_samples), device)
        generator = make_generator(settings.seed, step, micro_batch)
        sigma = sample_training_sigma(len(batch_samples), generator, objective.shift, objective.noise_range)
        noise = torch.randn(batch.latents.shape, generator=generator)
        losses = objective.losses(denoiser, batch, sigma.to(device), noise.to(device), generator)
        backpropagate(
            losses, objective.weights, objective.shares, parameters,
            list(objective.trainables().values()), 1 / settings.accumulate,
        )  # fmt: skip
        names = [sample.name for sample in batch_samples]
        batches.append(MicroBatch(names, sigma, {name: value.detach() for name, value in losses.items()}))
    return gather_batches(batches, ranks)


def gather_batches(batches: list[MicroBatch], ranks: Ranks) -> list[MicroBatch]:
    """Return the micro-batches of all ranks, on the CPU unless there is one rank alone."""
    if ranks.count == 1:
        return batches
    own = [
        batch._replace(losses={name: loss.cpu() for name, loss in batch.losses.items()}) for batch in batches
    ]
    return [batch for each in ranks.gather(own) for batch in each]


@torch.no_grad()
def measure_gradient(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together; it stays on the device."""
    grads = _list_gradients(parameters)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))) if grads else torch.zeros(())


def _list_gradients(parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]


def _fetch_losses(batches: Sequence[MicroBatch], norm: Tensor) -> tuple[Losses, float]:
    """Return the losses of a step's samples, and the norm, in one transfer.

    It is the only time in a step that the CPU waits for the device.
    """
    by_name = {name: [batch.losses[name] for batch in batches] for name in batches[0].losses}
    parts = [part.to(norm) for values in by_name.values() for part in values]
    numbers = iter(torch.cat([norm[None], *parts]).tolist())
    norm_number = next(numbers)
    return {
        name: list(itertools.islice(numbers, sum(map(len, values)))) for name, values in by_name.items()
    }, norm_number


def _check_finite(objective: Objective, names: Sequence[str], losses: Losses, step: int) -> None:
    """Raise NonFiniteLoss if a sample's total loss is not finite; `names` are the samples'."""
    for index, sample in enumerate(names):
        sample_losses = {name: values[index] for name, values in losses.items()}
        total = sum(objective.weights[name] * value for name, value in sample_losses.items())
        if not math.isfinite(total):
            shown = {name: round(value, 4) for name, value in sample_losses.items()}
            raise NonFiniteLoss(
                f"The loss of {sample} is {total} in step {step} ({shown}); the steps before are kept. Look "
                "at that file, or lower the learning rate."
            )


def _clip_gradient(state: TrainState, norm: float, settings: TrainSettings, step: int) -> None:
    """Scale the gradient of this norm down to `grad_clip`; NonFiniteLoss if the norm is not finite."""
    if not math.isfinite(norm):
        bad = [
            name
            for name, parameter in state.parameters.items()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        raise NonFiniteLoss(
            f"The gradient is {norm} in step {step}, first in {bad[0] if bad else 'the sum of all'}; the "
            "steps before are kept. Lower the learning rate, or train in float32 or bfloat16."
        )
    if settings.grad_clip and norm > settings.grad_clip:
        torch._foreach_mul_(_list_gradients(state.parameters), settings.grad_clip / (norm + _CLIP_EPSILON))


def _check_gradients(lora: Lora) -> None:
    """Raise NoGradient if an adapter has no gradient after the first step."""
    # B starts at zero, so that only B has a gradient in the first step.
    dead = [name for name, pair in lora.items() if pair.b.grad is None or not pair.b.grad.any()]
    if dead:
        raise NoGradient(
            f"{len(dead)} of {len(lora)} adapters have no gradient after step 1, first {dead[0]}: a patch of "
            "the model, or its loader, takes those linears out of the autograd graph. Load the model without "
            "patches, or by another loader."
        )


def _make_step_info(
    settings: TrainSettings,
    objective: Objective,
    batches: Sequence[MicroBatch],
    losses: Losses,
    grad_norm: float,
    step: int,
    seconds: float,
) -> StepInfo:
    """Average the losses of a step's micro-batches into its report."""
    sigmas = torch.cat([batch.sigma for batch in batches]).tolist()
    means = {name: fmean(values) for name, values in losses.items()}
    total = sum(objective.weights[name] * value for name, value in means.items())
    by_noise = NoiseBands(objective.noise_range, objective.shift).average(sigmas, losses)
    return StepInfo(step, settings.steps, means, total, grad_norm, seconds, by_noise)
