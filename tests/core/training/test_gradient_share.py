import pytest
import torch
from torch import nn

from smra_core.training.gradient_share import backpropagate, find_scale, warn_of_unused_shares

SHARE = 0.3


@pytest.fixture
def lora():
    return [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]


def linear_loss(parameters, gradients):
    """Return a loss `1` whose gradient is known: the sum of products."""
    return sum((p * torch.tensor(g).double()).sum() for p, g in zip(parameters, gradients, strict=False))[
        None
    ]


def test_a_share_is_reached_by_hand(lora):
    base = linear_loss(lora, [[3.0, 0.0], [0.0, 4.0]])  # norm 5
    aligned = linear_loss(lora, [[0.0, 0.1], [0.0, 0.0]])  # norm 0.1
    backpropagate({"base": base, "aligned": aligned}, {"base": 1, "aligned": 7}, {"aligned": 0.5}, lora, [])
    # Half of the sum of norms: the aligned gradient is scaled to norm 5.
    assert lora[0].grad.tolist() == pytest.approx([3.0, 5.0])
    assert lora[1].grad.tolist() == pytest.approx([0.0, 4.0])


def test_only_parameters_that_the_loss_reaches_count(lora):
    base = linear_loss(lora, [[3.0, 0.0], [0.0, 4.0]])
    aligned = linear_loss(lora[:1], [[0.0, 0.1]])
    backpropagate({"base": base, "aligned": aligned}, {"base": 1, "aligned": 1}, {"aligned": 0.5}, lora, [])
    assert lora[0].grad.tolist() == pytest.approx([3.0, 3.0])  # norm 3 where it reaches, not 5
    assert lora[1].grad.tolist() == pytest.approx([0.0, 4.0])


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_share_does_not_depend_on_the_size_of_the_loss(lora, size):
    torch.manual_seed(0)
    gradients = torch.randn(2, 2, 2).tolist()
    base, aligned = (linear_loss(lora, each) for each in gradients)
    backpropagate({"b": base, "a": size * aligned}, {"b": 1, "a": 1}, {"a": SHARE}, lora, [])
    total = torch.cat([parameter.grad for parameter in lora])
    base_gradient = torch.tensor(gradients[0]).double().flatten()
    aligned_norm = (total - base_gradient).norm()
    assert aligned_norm / (aligned_norm + base_gradient.norm()) == pytest.approx(SHARE)


def test_other_parameters_keep_the_weight(lora):
    projector = [nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    base = linear_loss(lora, [[1.0, 0.0]])
    aligned = linear_loss([*lora, *projector], [[0.0, 1.0], [0.0, 0.0], [2.0]])
    losses, weights = {"b": base, "a": aligned}, {"b": 1.0, "a": 0.05}
    backpropagate(losses, weights, {"a": 0.5}, lora, projector, factor=0.5)
    assert projector[0].grad.item() == pytest.approx(0.5 * 0.05 * 2.0)
    assert lora[0].grad.tolist() == pytest.approx([0.5, 0.5])


def test_gradients_of_micro_batches_add_up(lora):
    for _ in range(2):
        losses = {"b": linear_loss(lora, [[1.0, 0.0]]), "a": linear_loss(lora, [[0.0, 9.0]])}
        backpropagate(losses, {"b": 1, "a": 1}, {"a": 0.5}, lora, [], factor=0.5)
    assert lora[0].grad.tolist() == pytest.approx([1.0, 1.0])


def test_without_a_share_the_weights_hold(lora):
    losses = {"b": linear_loss(lora, [[1.0, 0.0]]), "a": linear_loss(lora, [[0.0, 9.0]])}
    backpropagate(losses, {"b": 1, "a": 2}, {"a": 0.0}, lora, [])
    assert lora[0].grad.tolist() == [1.0, 18.0]


def test_a_gradient_that_vanishes_stays_zero():
    assert find_scale([torch.zeros(2)], [torch.ones(2)], SHARE) == 0.0
    assert find_scale([None], [torch.ones(2)], SHARE) == 0.0


def test_only_a_share_of_a_loss_that_is_off_is_warned_of(caplog):
    warn_of_unused_shares({"region": 1.0, "sura": 0.05, "mora": 0.0}, {"sura": 0.3, "mora": 0.0})
    assert not caplog.records
    warn_of_unused_shares({"mora": 0.0}, {"mora": 0.3})
    assert caplog.messages == [
        "mora_share 0.3 has no effect, because mora_weight 0 turns that loss off. Set mora_weight above 0; "
        "with a share, its size does not matter to the LoRA."
    ]
