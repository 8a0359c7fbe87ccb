"""Gradients of both LoRAs: a card agrees with the CPU in float32, and bfloat16 agrees with float32."""

from dataclasses import replace

import pytest
import torch

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.miniature.small_settings import MOTION, SUBJECT
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from smra_core.training.batches import collate, move_to_device
from smra_core.training.motion import load_objective, prepare_motion
from smra_core.training.subject import prepare_subject
from smra_core.training.sura import SubjectObjective

DECODES = ["windowed", "exact", "exact-low-memory"]
FRAMES = 9


@pytest.fixture
def motion_gradient(make_backend, clip):
    """A function that returns the gradient of the motion loss on a device; all inputs come from the CPU."""
    cpu = torch.device("cpu")
    (sample,) = prepare_motion(make_backend(cpu), [clip], SEA_RAFT_FILE)

    def compute(device, dtype, decode):
        backend = make_backend(device, dtype)
        settings = replace(MOTION, frames=FRAMES, decode=decode)
        objective = load_objective(backend, SEA_RAFT_FILE, settings, [sample])
        return gradient_of(backend, objective, sample, settings)

    return compute


@pytest.fixture
def subject_gradient(make_backend, picture):
    """A function that returns the gradient of the subject loss on a device."""
    (sample,) = prepare_subject(make_backend(torch.device("cpu")), [picture], DINOV2_FILE)

    def compute(device, dtype):
        backend = make_backend(device, dtype)
        objective = SubjectObjective(SUBJECT, backend.spec.dim, sample.features.shape[-1])
        objective.projector.to(device)
        return gradient_of(backend, objective, sample, SUBJECT)

    return compute


def gradient_of(backend, objective, sample, settings):
    """The gradient of all factors in a row, float64 on the CPU; A and B are both away from zero."""
    generator = torch.Generator().manual_seed(0)
    lora = init_lora(backend.spec, settings.plan, 4, generator)
    for pair in lora.values():
        pair.b.data.normal_(std=0.02, generator=generator)
        pair.to(backend.device)
    batch = move_to_device(collate([sample]), backend.device)
    noise = torch.randn(batch.latents.shape, generator=generator).to(backend.device)
    sigma = torch.full((1,), 0.4, device=backend.device)
    with backend.denoiser_for_training() as denoiser, injected(denoiser.linears(), Injection(lora)):
        losses = objective.losses(denoiser, batch, sigma, noise, generator)
        sum(objective.weights[name] * value for name, value in losses.items()).mean().backward()
    factors = [factor for pair in lora.values() for factor in (pair.a, pair.b)]
    return torch.cat([factor.grad.flatten() for factor in factors]).double().cpu()


def relative_error(ours, reference):
    """The length of the difference over the length of the reference."""
    return ((ours - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("decode", DECODES)
def test_a_motion_step_on_the_card_has_the_gradient_of_the_cpu(cuda, full_float32, motion_gradient, decode):
    ours = motion_gradient(cuda, torch.float32, decode)
    assert relative_error(ours, motion_gradient(torch.device("cpu"), torch.float32, decode)) < 1e-3


def test_a_subject_step_on_the_card_has_the_gradient_of_the_cpu(cuda, full_float32, subject_gradient):
    ours = subject_gradient(cuda, torch.float32)
    assert relative_error(ours, subject_gradient(torch.device("cpu"), torch.float32)) < 1e-3


def test_a_subject_step_in_bfloat16_has_nearly_the_gradient_of_float32(
    device, full_float32, subject_gradient
):
    ours, exact = (subject_gradient(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert relative_error(ours, exact) < 0.1


def test_a_motion_step_in_bfloat16_has_nearly_the_gradient_of_float32(device, full_float32, motion_gradient):
    ours, exact = (motion_gradient(device, dtype, "windowed") for dtype in (torch.bfloat16, torch.float32))
    assert relative_error(ours, exact) < 0.1
