import numpy as np
import pytest
import torch

from smra_core.mora import MotionSettings, debiased, flow_alignment_loss, flow_weight, temporal_loss

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


def test_debiasing_removes_what_all_frames_share():
    shared = torch.randn(1, 16, 1, 4, 4).expand(1, 16, 3, 4, 4)
    moved = debiased(shared, torch.tensor([1]))
    torch.testing.assert_close(moved, (2**0.5 - 1) * shared)


def test_flow_weights_by_noise_level():
    sigma = torch.tensor([0.0, 0.5, 0.9, 0.95])
    assert flow_weight(sigma, "none").tolist() == [1, 1, 1, 1]
    assert flow_weight(sigma, "clean").tolist() == pytest.approx([2.0, 1.0, 0.2, 0.0])


def test_an_unknown_flow_weight_is_refused():
    with pytest.raises(ValueError, match="'late' is not known"):
        MotionSettings(flow_weight="late")
