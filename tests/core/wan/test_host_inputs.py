"""Inputs of blocks in host memory: what is kept on the device, whose memory is used again, and errors."""

import gc
import weakref

import pytest
import torch

from smra_core.wan.block_stream import Copies
from smra_core.wan.host_inputs import HostInputs

CPU = torch.device("cpu")


def cube(x, factor=1.0):
    return x * x * x * factor


@pytest.fixture
def host():
    return HostInputs(CPU)


def test_the_gradient_is_that_of_the_function(host):
    x = torch.tensor([2.0, -1.0], requires_grad=True)
    y = host.run_checkpointed(cube, x * 1, factor=2.0)
    y.sum().backward()
    assert y.tolist() == [16, -2] and x.grad.tolist() == [24, 6]


def test_what_waits_is_not_kept_on_the_device(host):
    leaf = torch.ones(100, requires_grad=True)
    x = leaf * 3
    gone = weakref.ref(x.untyped_storage())
    y = host.run_checkpointed(cube, x)
    del x
    gc.collect()
    assert gone() is None
    y.sum().backward()
    assert leaf.grad.eq(81).all()


def test_memory_is_used_again_but_not_while_a_graph_needs_it(host):
    leaf = torch.ones(100, requires_grad=True)
    first, second = (host.run_checkpointed(cube, leaf * factor) for factor in (1, 2))
    size = 2 * 100 * 4
    assert host.bytes == size
    second.sum().backward()
    first.sum().backward()
    assert leaf.grad.eq(3 + 24).all()
    del first, second
    gc.collect()
    smaller = host.run_checkpointed(cube, leaf[:50] * 1)
    smaller.sum().backward()
    assert host.bytes == size


def test_an_error_in_a_block_gives_the_memory_back(host):
    x = torch.ones(3, requires_grad=True)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            host.run_checkpointed(lambda x: 1 / 0, x * 1)
        gc.collect()
    assert host.bytes == 12


def test_the_copy_is_waited_for_after_the_block_and_before_the_memory_is_free(host, monkeypatch):
    """On a card the copy runs beside the block's work; only its end makes the input's memory free."""
    events = []
    monkeypatch.setattr(host, "_copies", Recorder(events))
    host.run_checkpointed(lambda x: events.append("block") or cube(x), torch.ones(3, requires_grad=True) * 1)
    assert events == ["start", "block", "finish"]


class Recorder(Copies):
    def __init__(self, events):
        super().__init__(CPU)
        self.events = events

    def start(self, sources, targets):
        self.events.append("start")
        return super().start(sources, targets)

    def finish(self, copy):
        self.events.append("finish")
