"""The motion losses as pure functions, by hand and against numpy."""

import numpy as np
import pytest
import torch

from smra_core.training.mora import flow_alignment_loss, flow_weight
from smra_core.training.temporal_loss import debias, temporal_loss

BATCH, PAIRS, HEIGHT, WIDTH = 2, 3, 4, 8
LATENTS = (BATCH, 16, 3, 4, 4)


def test_one_pixel_sideways_everywhere_costs_one_over_the_width():
    reference = torch.zeros(PAIRS, 2, 320, 576)
    sideways, down = reference.clone(), reference.clone()
    sideways[:, 0] += 1
    down[:, 1] -= 1
    assert flow_alignment_loss(sideways, reference).item() == pytest.approx(1 / 576)
    assert flow_alignment_loss(down, reference).item() == pytest.approx(1 / 320)
    assert flow_alignment_loss(sideways + down, reference).item() == pytest.approx(1 / 576 + 1 / 320)


def test_flow_alignment_equals_numpy():
    flow, reference = torch.randn(2, BATCH, PAIRS, 2, HEIGHT, WIDTH)
    error = np.abs(flow.numpy() - reference.numpy())
    expected = (error[:, :, 0] / WIDTH + error[:, :, 1] / HEIGHT).mean((1, 2, 3))
    np.testing.assert_allclose(flow_alignment_loss(flow, reference), expected, atol=1e-5)


def test_temporal_loss_equals_numpy():
    velocity, target = torch.randn(2, *LATENTS)
    anchor = torch.tensor([2, 0])
    v, t = velocity.numpy(), target.numpy()
    expected = []
    for i, a in enumerate(anchor.tolist()):
        dv, dt = (2**0.5 * x[i] - x[i][:, a : a + 1] for x in (v, t))
        expected.append(((v[i] - t[i]) ** 2).mean() + ((dv - dt) ** 2).mean())
    np.testing.assert_allclose(temporal_loss(velocity, target, anchor), expected, rtol=1e-5)
    plain = ((v - t) ** 2).mean((1, 2, 3, 4))
    np.testing.assert_allclose(temporal_loss(velocity, target), plain, rtol=1e-5)


def test_flow_alignment_with_a_mask_is_the_mean_over_what_it_keeps():
    reference = torch.zeros(PAIRS, 2, HEIGHT, WIDTH)
    flow = reference.clone()
    flow[:, 0, :, : WIDTH // 2] = 1  # one pixel off in the left half, and eight in the right
    flow[:, 0, :, WIDTH // 2 :] = 8
    kept = torch.zeros(PAIRS, 1, HEIGHT, WIDTH)
    kept[..., : WIDTH // 2] = 1
    assert flow_alignment_loss(flow, reference, kept / kept.mean()).item() == pytest.approx(1 / WIDTH)
    assert flow_alignment_loss(flow, reference, torch.ones_like(kept)) == flow_alignment_loss(flow, reference)


def test_temporal_loss_with_a_mask_by_hand():
    """One channel, two latents of one row of two cells; the left cell of the first latent is left out."""
    velocity = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 1, 2)
    target, mask = torch.zeros_like(velocity), torch.tensor([[0.0, 1.0], [1.0, 1.0]]).view(1, 1, 2, 1, 2)
    plain = (2**2 + 3**2 + 4**2) / 3
    assert temporal_loss(velocity, target, mask_latent=mask).item() == pytest.approx(plain)
    # Against latent 0 the left cells do not count, because the anchor's does not.
    first = ((2**0.5 * 2 - 2) ** 2 + (2**0.5 * 4 - 2) ** 2) / 2
    assert temporal_loss(velocity, target, torch.tensor([0]), mask_latent=mask).item() == pytest.approx(
        plain + first
    )
    second = ((2**0.5 * 2 - 4) ** 2 + (2**0.5 * 3 - 3) ** 2 + (2**0.5 * 4 - 4) ** 2) / 3
    assert temporal_loss(velocity, target, torch.tensor([1]), mask_latent=mask).item() == pytest.approx(
        plain + second
    )


def test_what_a_mask_leaves_out_has_no_influence():
    velocity, target = torch.randn(2, *LATENTS)
    mask = torch.ones(BATCH, 1, *LATENTS[2:])
    mask[0, :, 1, 2:] = 0
    anchor = torch.tensor([1, 0])
    changed = torch.where(mask.bool(), velocity, torch.tensor(100.0))
    assert torch.equal(
        temporal_loss(velocity, target, anchor, mask_latent=mask),
        temporal_loss(changed, target, anchor, mask_latent=mask),
    )
    assert not torch.equal(temporal_loss(velocity, target, anchor), temporal_loss(changed, target, anchor))


def test_debiasing_removes_what_all_frames_share():
    shared = torch.randn(1, 16, 1, 4, 4).expand(1, 16, 3, 4, 4)
    debiased = debias(shared, torch.tensor([1]))
    torch.testing.assert_close(debiased, (2**0.5 - 1) * shared)


def test_flow_weights_by_noise_level():
    sigma = torch.tensor([0.0, 0.5, 0.9, 0.95])
    assert flow_weight(sigma, "none").tolist() == [1, 1, 1, 1]
    # 2 (1 - sigma) up to 0.9 has the mean 0.99 over uniform levels, and 0.9891 over 1000 of them.
    expected = [value / 0.9891 for value in (2.0, 1.0, 0.2, 0.0)]
    assert flow_weight(sigma, "clean").tolist() == pytest.approx(expected, rel=1e-5)
