import numpy as np
import pytest
import torch

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import ALL_LAYERS
from smra_core.training.batches import collate
from smra_core.training.cost import count_projector_parameters
from smra_core.training.sura import (
    SubjectObjective,
    SubjectSample,
    SubjectSettings,
    make_projector,
    region_loss,
    sura_loss,
)
from smra_core.wan.flow_matching import velocity_weight

BATCH, GRID, DIM, FEATURES, TEXT = 2, 4, 8, 5, 6


def subject_batch(dtype=torch.float64):
    torch.manual_seed(0)
    mask = torch.zeros(1, 1, GRID, GRID, dtype=dtype)
    mask[..., 1:3, 1:4] = 1
    samples = [
        SubjectSample(
            f"image {i}",
            torch.randn(16, 1, GRID, GRID, dtype=dtype),
            torch.randn(3, TEXT, dtype=dtype),
            mask,
            torch.randn(GRID * GRID // 4, FEATURES, dtype=dtype),
        )
        for i in range(BATCH)
    ]
    return collate(samples), torch.randn(BATCH, 16, 1, GRID, GRID, dtype=dtype), torch.tensor([0.3, 0.8])


def settings(**changes):
    return SubjectSettings(projector_width=7, plan=ALL_LAYERS, rank=2, **changes)


def test_region_loss_by_hand():
    velocity, target = torch.zeros(1, 2, 1, 1, 2), torch.tensor([3.0, 100.0, 1.0, 100.0]).view(1, 2, 1, 1, 2)
    inside_left = torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2)
    assert region_loss(velocity, target, inside_left).item() == (9 + 1) / 2


def test_region_loss_equals_numpy():
    velocity, target = torch.randn(2, BATCH, 16, 1, GRID, GRID)
    mask = (torch.rand(BATCH, 1, 1, GRID, GRID) > 0.5).float()
    for i, value in enumerate(region_loss(velocity, target, mask)):
        inside = mask[i, 0].numpy() > 0
        error = (velocity[i].numpy()[:, inside] - target[i].numpy()[:, inside]) ** 2
        assert value.item() == pytest.approx(error.mean(), abs=1e-5)


def test_sura_loss_is_minus_one_for_parallel_and_zero_for_orthogonal_features():
    features = torch.eye(2)[None]
    assert sura_loss(5 * features, features).item() == pytest.approx(-1)
    assert sura_loss(features.flip(1), features).item() == pytest.approx(0)
    assert sura_loss(-features, features).item() == pytest.approx(1)


def test_sura_loss_equals_numpy():
    projected, features = torch.randn(2, BATCH, 9, FEATURES)
    p, f = projected.numpy().astype(np.float64), features.numpy().astype(np.float64)
    cosine = (p * f).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(f, axis=-1)
    np.testing.assert_allclose(sura_loss(projected, features), -cosine.mean(-1), atol=1e-5)


def test_features_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="16 tokens of width 5 cannot be aligned with 9"):
        sura_loss(torch.ones(1, 16, 5), torch.ones(1, 9, 5))


def test_the_projectors_parameters_are_counted():
    net = make_projector(8, 5, 7, torch.Generator())
    assert count_projector_parameters(8, 5, 7) == sum(parameter.numel() for parameter in net.parameters())


def test_the_projector_depends_on_its_generator_alone():
    first = make_projector(DIM, FEATURES, 7, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    second = make_projector(DIM, FEATURES, 7, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert [tuple(p.shape) for p in first.parameters() if p.ndim == 2] == [(7, 8), (7, 7), (5, 7)]


@pytest.mark.parametrize("sura_weight", [0.0, 0.05])
def test_lora_gradients_of_the_subject_losses_equal_finite_differences(
    toy_denoiser, finite_difference, sura_weight
):
    denoiser = toy_denoiser().double()
    batch, noise, sigma = subject_batch()
    objective = SubjectObjective(settings(sura_weight=sura_weight), DIM, FEATURES)
    objective.projector.double()
    lora = init_lora(denoiser.spec, ALL_LAYERS, 2, torch.Generator().manual_seed(0))
    torch.manual_seed(4)
    for pair in lora.values():
        pair.double().b.data.normal_(std=0.1)

    def total():
        losses = objective.losses(denoiser, batch, sigma, noise, torch.Generator())
        return sum(objective.weights[name] * value.mean() for name, value in losses.items())

    with injected(denoiser.linears(), Injection(lora)):
        total().backward()
        for name in ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.cross_attn.v"):
            for parameter in lora[name].parameters():
                direction = torch.randn_like(parameter)
                slope = finite_difference(total, parameter, direction)
                assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_sura_reaches_the_projector_and_only_blocks_up_to_the_aligned_one(toy_denoiser):
    denoiser = toy_denoiser().double()
    batch, noise, sigma = subject_batch()
    objective = SubjectObjective(settings(), DIM, FEATURES)
    objective.projector.double()
    lora = init_lora(denoiser.spec, ALL_LAYERS, 2, torch.Generator().manual_seed(0))
    for pair in lora.values():
        pair.double()
    with injected(denoiser.linears(), Injection(lora)):
        objective.losses(denoiser, batch, sigma, noise, torch.Generator())["sura"].sum().backward()
    assert lora["blocks.0.ffn.2"].b.grad.abs().sum() > 0
    assert lora["blocks.1.ffn.2"].b.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.trainables().values())


def test_sura_weight_zero_is_bit_equal_to_the_region_loss_alone(toy_denoiser):
    denoiser = toy_denoiser().double()
    batch, noise, sigma = subject_batch()
    run = lambda weight: SubjectObjective(settings(sura_weight=weight), DIM, FEATURES)  # noqa: E731
    without, with_sura = run(0.0), run(0.05)
    with_sura.projector.double()
    plain = without.losses(denoiser, batch, sigma, noise, torch.Generator())
    both = with_sura.losses(denoiser, batch, sigma, noise, torch.Generator())
    assert set(plain) == {"region"} and without.trainables() == {}
    assert torch.equal(plain["region"], both["region"])


def test_the_region_loss_is_weighted_by_noise_level_and_sura_is_not(toy_denoiser):
    denoiser = toy_denoiser().double()
    batch, noise, sigma = subject_batch()
    losses = {}
    for weighted in (True, False):
        objective = SubjectObjective(settings(weighted_velocity=weighted), DIM, FEATURES)
        objective.projector.double()
        losses[weighted] = objective.losses(denoiser, batch, sigma, noise, torch.Generator())
    ratio = losses[True]["region"] / losses[False]["region"]
    torch.testing.assert_close(ratio, velocity_weight(sigma).double(), rtol=1e-6, atol=0)
    assert torch.equal(losses[True]["sura"], losses[False]["sura"])


def silu(x):
    return x / (1 + np.exp(-x))


def test_the_losses_equal_numpy_from_the_noise_to_the_number(toy_denoiser):
    denoiser = toy_denoiser()
    batch, noise, sigma = subject_batch(torch.float32)
    objective = SubjectObjective(settings(), DIM, FEATURES)
    x0, e, s = (
        part.numpy().astype(np.float64) for part in (batch.latents, noise, sigma.view(-1, 1, 1, 1, 1))
    )
    noisy = torch.from_numpy((1 - s) * x0 + s * e).float()
    velocity, tokens = (
        part.numpy() for part in denoiser.velocity(noisy, sigma, batch.context, token_block=0)
    )
    bell = lambda t: np.exp(-2 * ((t - 500) / 1000) ** 2)  # noqa: E731
    schedule = bell(np.arange(1000, 0, -1))
    weight = (bell(1000 * s.ravel()) - schedule.min()) * 1000 / (schedule - schedule.min()).sum()
    region, sura = [], []
    for i, inside in enumerate(batch.mask_latent[:, 0].numpy() > 0):
        error = (velocity[i] - (e[i] - x0[i])) ** 2
        region.append(weight[i] * error[:, inside].mean())
        hidden = tokens[i].astype(np.float64)
        for layer, linear in enumerate(objective.projector[::2]):
            matrix, bias = (part.detach().numpy() for part in (linear.weight, linear.bias))
            hidden = (silu(hidden) if layer else hidden) @ matrix.T + bias
        features = batch.features[i].numpy()
        lengths = np.linalg.norm(hidden, axis=-1) * np.linalg.norm(features, axis=-1)
        sura.append(-((hidden * features).sum(-1) / lengths).mean())
    losses = objective.losses(denoiser, batch, sigma, noise, torch.Generator())
    np.testing.assert_allclose(losses["region"], region, rtol=1e-5)
    np.testing.assert_allclose(losses["sura"].detach(), sura, atol=1e-5)


def test_the_projector_and_the_lora_are_two_draws(toy_denoiser):
    denoiser = toy_denoiser()
    lora = init_lora(denoiser.spec, ALL_LAYERS, 2, torch.Generator().manual_seed(5))
    objective = SubjectObjective(SubjectSettings(projector_width=8), denoiser.spec.dim, 4, seed=5)
    first = next(iter(lora.values())).a
    assert not torch.allclose(objective.projector[0].weight[: len(first)], first)
