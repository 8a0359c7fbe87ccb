"""Joint training of a subject and a motion LoRA: each step trains one of them with the other one applied.

The idea is DualReal's (Wang et al., 2025), whose adapters and controller are not rebuilt here: LoRAs that are
trained apart never see each other until they are combined. Losses, batches and random numbers are those of
`train_lora`, so that a row of the bench differs from separate training in the other LoRA alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...data.motion_clip import MotionClip
from ...data.subject_set import SubjectImage
from ...lora.adapter import Injection, init_lora, injected
from ...lora.schedule import MOTION_STRENGTHS, ScheduledLora, Strengths, TPoint, choose_strength
from ...standalone.backend import StandaloneBackend
from ...training.batches import choose_batch, collate
from ...training.gradient_share import backpropagate
from ...training.motion import load_objective, prepare_motion
from ...training.motion_settings import MotionSettings
from ...training.objective import Objective
from ...training.random_stream import make_generator
from ...training.state import TrainState
from ...training.subject import prepare_subject
from ...training.sura import SubjectObjective, SubjectSettings
from ...training.train_settings import TrainSettings
from ...wan.flow_matching import sample_training_sigma
from ...wan.interfaces import Denoiser
from ..small_settings import MOTION_TRAINING, SUBJECT_TRAINING
from ..weight_paths import DINOV2_FILE, SEA_RAFT_FILE


@dataclass(frozen=True)
class JointSide:
    """One of the two LoRAs that are trained together."""

    state: TrainState
    objective: Objective
    samples: Sequence[Any]
    settings: TrainSettings
    strengths: Strengths
    """Strengths that the LoRA has while the other one is trained: those of the sampling."""


def train_jointly(denoiser: Denoiser, first: JointSide, second: JointSide) -> None:
    """Train both LoRAs in place, in turns, each for its own number of steps."""
    for side, other in order_steps(first, second):
        train_step(denoiser, side, other)


def order_steps(first: JointSide, second: JointSide) -> Iterator[tuple[JointSide, JointSide]]:
    """Yield the side that is trained next, which has done the smaller share of its steps, and the other."""
    while True:
        shares = [side.state.step / side.settings.steps for side in (first, second)]
        if min(shares) >= 1:
            return
        yield (first, second) if shares[0] <= shares[1] else (second, first)


def train_step(denoiser: Denoiser, side: JointSide, other: JointSide) -> None:
    """Train one side by one step; the other is applied as it will be in sampling, and not trained."""
    state, settings, objective = side.state, side.settings, side.objective
    batch = collate(choose_batch(side.samples, settings.batch_size, settings.seed, state.step))
    generator = make_generator(settings.seed, state.step + 1, 0)
    sigma = sample_training_sigma(len(batch.latents), generator, objective.shift, objective.noise_range)
    noise = torch.randn(batch.latents.shape, generator=generator)
    strength = choose_strength(other.strengths, sigma.mean().item(), TPoint().sigma)
    for trained, parameters in ((True, state.parameters), (False, other.state.parameters)):
        for parameter in parameters.values():
            parameter.requires_grad_(trained)
    state.optimizer.zero_grad(set_to_none=True)
    with injected(denoiser.linears(), Injection(state.lora), Injection(other.state.lora, strength)):
        losses = objective.losses(denoiser, batch, sigma, noise, generator)
        lora = [factor for pair in state.lora.values() for factor in pair.parameters()]
        projector = list(objective.trainables().values())
        backpropagate(losses, objective.weights, objective.shares, lora, projector)
    torch.nn.utils.clip_grad_norm_(state.parameters.values(), settings.grad_clip)
    state.update()
    state.step += 1


def train_pair_jointly(
    backend: StandaloneBackend,
    subject: tuple[Sequence[SubjectImage], SubjectSettings, Strengths],
    motion: tuple[MotionClip, MotionSettings],
    seed: int,
) -> tuple[ScheduledLora, ScheduledLora]:
    """Train a subject and a motion LoRA together from one seed; `subject` holds the strengths of sampling."""
    images, settings, strengths = subject
    samples = prepare_subject(backend, images, DINOV2_FILE)
    objective = SubjectObjective(settings, backend.spec.dim, samples[0].features.shape[-1], seed)
    first = _make_side(backend, objective, samples, replace(SUBJECT_TRAINING, seed=seed), strengths)
    clip, motion_settings = motion
    flow_file = SEA_RAFT_FILE if motion_settings.mora_weight else None
    clips = prepare_motion(backend, [clip], flow_file)
    motion_objective = load_objective(backend, flow_file, motion_settings, clips)
    second = _make_side(
        backend, motion_objective, clips, replace(MOTION_TRAINING, seed=seed), MOTION_STRENGTHS
    )
    with backend.denoiser_for_training() as denoiser:
        train_jointly(denoiser, first, second)
    return ScheduledLora(first.state.lora, strengths), ScheduledLora(second.state.lora, MOTION_STRENGTHS)


def _make_side(
    backend: StandaloneBackend, objective: Any, samples: Sequence, train: TrainSettings, strengths: Strengths
) -> JointSide:
    generator = torch.Generator().manual_seed(train.seed)
    lora = init_lora(backend.spec, objective.settings.plan, objective.settings.rank, generator)
    state = TrainState(lora, objective.trainables(), train.learning_rate, train.weight_decay)
    return JointSide(state, objective, samples, train, strengths)
