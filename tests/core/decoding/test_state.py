"""Decoder states on their way to host memory; on a card through pinned memory."""

import pytest
import torch

from smra_core.decoding import state
from smra_core.decoding.state import offload, reload_with_grad


class OnCard:
    """Stands in for a tensor on a card, which this machine may lack."""

    device, shape, dtype = torch.device("cuda"), torch.Size([3]), torch.float32

    def cpu(self):
        return torch.ones(3)


def test_a_state_comes_back_as_leaves_with_the_same_values():
    kept = offload((torch.arange(3.0),))
    (leaf,) = reload_with_grad(kept, torch.zeros(1))
    assert leaf.is_leaf and leaf.requires_grad and leaf.tolist() == [0, 1, 2]
    assert offload(None) is None


def test_where_the_system_pins_no_more_memory_the_copy_is_pageable(monkeypatch):
    def refuse(*shape, **options):
        assert options["pin_memory"]
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(state.torch, "empty", refuse)
    (copy,) = offload((OnCard(),))
    assert copy.tolist() == [1, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_on_a_card_the_copy_is_pinned_and_equal():
    (copy,) = offload((torch.arange(5.0, device="cuda"),))
    torch.cuda.synchronize()
    assert copy.is_pinned() and copy.tolist() == [0, 1, 2, 3, 4]
