"""The training loop, one for all objectives."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..lora.adapter import Injection, Lora, injected
from ..wan.flow_matching import sample_training_sigma
from ..wan.interfaces import Denoiser
from .batches import Sample, choose_batch, collate, move_to_device
from .gradient_share import backpropagate
from .held_out import measure_held_out
from .learning_rate import learning_rate_factor
from .objective import Objective
from .preservation import BaseModel
from .random_stream import make_generator
from .ranks import ALONE, Ranks
from .run_folder import RunFolder
from .state import TrainState
from .step_checks import check_adapters, check_losses, clip_gradient, measure_gradient
from .step_info import MicroBatch, StepInfo, fetch_losses, gather_batches, make_step_info
from .train_settings import TrainSettings


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
                losses, grad_norm = fetch_losses(batches, measure_gradient(state.parameters))
                check_losses(objective, [name for batch in batches for name in batch.names], losses, step)
                clip_gradient(state, grad_norm, settings, step)
                if step == 1:
                    check_adapters(lora)
                is_updating = True
                state.update(_find_rate_factor(settings, step))
                state.step, is_updating = step, False
                info = make_step_info(
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
