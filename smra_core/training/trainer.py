"""One visible training loop, for any objective."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..lora.adapter import Injection, Lora, injected
from ..wan.flow_matching import sample_training_sigma
from ..wan.interfaces import Denoiser
from ..wan.settings import declare_setting
from .run_folder import RunFolder
from .state import TrainState

log = logging.getLogger("smrabooth")
Sample = TypeVar("Sample", bound=NamedTuple)


class Objective(Protocol):
    """What is trained for; the trainer knows no objective by name."""

    weights: Mapping[str, float]
    """Of each named loss in the total."""
    shift: float
    """Of the training noise levels; 1 is uniform."""
    memory_advice: str
    """What to change when memory runs out, as a sentence."""

    def trainables(self) -> dict[str, nn.Parameter]:
        """Parameters trained beside the LoRA, by name."""
        ...

    def losses(
        self, denoiser: Denoiser, batch: Any, sigma: Tensor, noise: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Named losses, each `B`, of collated samples at noise levels `B`."""
        ...


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast to train."""

    steps: int = declare_setting(
        1000,
        "Training steps. More fit the data more closely, in the end too closely; raising it later extends "
        "the run.",
    )
    batch_size: int = declare_setting(
        1,
        "Samples that go through the model at once. More give steadier steps and need more memory.",
    )
    accumulate: int = declare_setting(
        2,
        "Batches that one step averages over. More give steadier steps and need more time.",
    )
    learning_rate: float = declare_setting(
        1e-4,
        "Size of a step. Higher learns faster, and too high breaks the model; the paper's is 1e-4.",
    )
    weight_decay: float = declare_setting(
        0.01,
        "AdamW's weight decay. Higher values keep the LoRA weaker and forget details.",
    )
    grad_clip: float = declare_setting(
        1.0, "Gradient norm above which a step is scaled down. 0 turns clipping off."
    )
    seed: int = declare_setting(0, "Random seed. Changing it starts a new run.")
    save_every: int = declare_setting(
        50,
        "Steps between two saved states. Raising it writes less often; a hard kill then loses more steps.",
    )
    save_minutes: float = declare_setting(
        5.0,
        "Minutes after which the state is saved in any case. Raising it risks more work on slow cards.",
    )

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.save_minutes > 0:
            raise ValueError(f"save_minutes must be above 0, got {self.save_minutes}. 5 is a good value.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}. The paper uses 1e-4.")


class StepInfo(NamedTuple):
    """One finished step."""

    step: int
    """From 1."""
    steps: int
    losses: dict[str, float]
    """Unweighted, averaged over the step's samples."""
    total: float
    grad_norm: float
    """Before clipping."""
    seconds: float


class NonFiniteLoss(ValueError):
    """A loss or gradient was not a number; nothing of that step was applied."""


class NoGradient(ValueError):
    """Adapters that the losses do not reach, so that they would stay as they are."""


def train_lora(
    denoiser: Denoiser,
    lora: Lora,
    objective: Objective,
    samples: Sequence[Sample],
    settings: TrainSettings,
    run: RunFolder | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> TrainState:
    """Train the LoRA in place; with a run folder, go on from its state and keep it up to date.

    Whatever ends the loop (the last step, an exception from `on_step`, an interrupt, out of memory), the
    model is left as found and the last finished step is saved. All randomness of a step comes from the seed
    and the step's number, so that a resumed run repeats an uninterrupted one. Raises NonFiniteLoss,
    NoGradient.
    """
    state = TrainState(lora, objective.trainables(), settings.learning_rate, settings.weight_decay)
    if run is not None:
        run.restore(state)
    applying, saved_at = False, time.monotonic()
    try:
        with injected(denoiser.linears(), Injection(lora)):
            while state.step < settings.steps:
                started = time.monotonic()
                step = state.step + 1
                state.optimizer.zero_grad(set_to_none=True)
                losses = _accumulate(denoiser, lora, objective, samples, settings, step)
                grad_norm = _checked_norm(state, settings, step)
                if step == 1:
                    _check_reached(lora)
                applying = True
                state.optimizer.step()
                state.step, applying = step, False
                info = _info(settings, objective, losses, grad_norm, step, time.monotonic() - started)
                if run is not None:
                    run.log_losses(step, {"total": info.total, **info.losses})
                    waited = time.monotonic() - saved_at
                    if step % settings.save_every == 0 or waited >= 60 * settings.save_minutes:
                        run.save(state)
                        saved_at = time.monotonic()
                if on_step is not None:
                    on_step(info)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"Out of memory in step {state.step + 1}; the steps before are kept. {objective.memory_advice}"
        ) from error
    finally:
        if run is not None and state.step and not applying:
            run.save(state)
    return state


def _accumulate(
    denoiser: Denoiser,
    lora: Lora,
    objective: Objective,
    samples: Sequence[Sample],
    settings: TrainSettings,
    step: int,
) -> list[dict[str, Tensor]]:
    """Add up the gradients of a step's batches; their losses, detached."""
    device = next(iter(lora.values())).a.device
    seen = []
    for part in range(settings.accumulate):
        chosen = [samples[i] for i in sample_order(len(samples), settings, step, part)]
        batch = moved(collate(chosen), device)
        generator = step_generator(settings.seed, step, part)
        sigma = sample_training_sigma(len(chosen), generator, objective.shift)
        noise = torch.randn(batch.latents.shape, generator=generator)
        losses = objective.losses(denoiser, batch, sigma.to(device), noise.to(device), generator)
        total = sum(objective.weights[name] * value for name, value in losses.items())
        _check_finite(total, losses, chosen, step)
        (total.mean() / settings.accumulate).backward()
        seen.append({name: value.detach() for name, value in losses.items()})
    return seen


def sample_order(count: int, settings: TrainSettings, step: int, part: int) -> Iterator[int]:
    """Indices of one batch: every sample once in random order, then all again in another one."""
    first = ((step - 1) * settings.accumulate + part) * settings.batch_size
    for place in range(first, first + settings.batch_size):
        epoch, within = divmod(place, count)
        order = torch.randperm(count, generator=step_generator(settings.seed, "epoch", epoch))
        yield int(order[within])


def step_generator(*parts: int | str) -> torch.Generator:
    """A generator that depends on these numbers alone."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples of one kind: tensors along a new first axis, everything else as a list."""
    columns = [list(column) for column in zip(*samples, strict=True)]
    stacked = [torch.stack(column) if isinstance(column[0], Tensor) else column for column in columns]
    return type(samples[0])(*stacked)


def moved(batch: Sample, device: torch.device) -> Sample:
    return type(batch)(*(part.to(device) if isinstance(part, Tensor) else part for part in batch))


def _check_finite(total: Tensor, losses: Mapping[str, Tensor], chosen: Sequence[Sample], step: int) -> None:
    for place, value in enumerate(total.tolist()):
        if not math.isfinite(value):
            parts = {name: round(loss[place].item(), 4) for name, loss in losses.items()}
            raise NonFiniteLoss(
                f"The loss of {chosen[place].name} is {value} in step {step} ({parts}); the steps before are "
                "kept. Look at that file, or lower the learning rate."
            )


def _checked_norm(state: TrainState, settings: TrainSettings, step: int) -> float:
    norm = torch.nn.utils.clip_grad_norm_(state.parameters.values(), settings.grad_clip or math.inf).item()
    if math.isfinite(norm):
        return norm
    bad = [
        name
        for name, parameter in state.parameters.items()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    raise NonFiniteLoss(
        f"The gradient is {norm} in step {step}, first in {bad[0] if bad else 'the sum of all'}; the steps "
        "before are kept. Lower the learning rate, or train in float32 or bfloat16."
    )


def _check_reached(lora: Lora) -> None:
    # B starts at zero, so that only B has a gradient in the first step.
    dead = [name for name, pair in lora.items() if pair.b.grad is None or not pair.b.grad.any()]
    if dead:
        raise NoGradient(
            f"{len(dead)} of {len(lora)} adapters have no gradient after step 1, first {dead[0]}. The losses "
            "do not reach them: the model's patches or loader take those linears out of the graph."
        )


def _info(
    settings: TrainSettings,
    objective: Objective,
    losses: Sequence[Mapping[str, Tensor]],
    grad_norm: float,
    step: int,
    seconds: float,
) -> StepInfo:
    means = {name: torch.stack([part[name].mean() for part in losses]).mean().item() for name in losses[0]}
    total = sum(objective.weights[name] * value for name, value in means.items())
    return StepInfo(step, settings.steps, means, total, grad_norm, seconds)
