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


class LateCopies(Copies):
    """Spoils the place that a copy goes to when it starts, and copies when it is waited for."""

    def __init__(self, events):
        super().__init__(CPU)
        self.events, self.pending = events, 0

    def start(self, sources, targets):
        values = [source.clone() for source in sources]
        for target in targets:
            target.fill_(torch.nan)
        self.events.append(f"copy {values[0].flatten()[0].item():g}")
        self.pending += 1
        return values, targets

    def finish(self, copy):
        self.pending -= 1
        super().start(*copy)


def run_three(host, events, leaf):
    """Three blocks in a row, whose inputs begin with 1, 2 and 4."""

    def double(x):
        events.append(f"run {x.flatten()[0].item():g}")
        return x.square() * 2 / x.detach()  # 2 x, whose gradient needs x

    x = leaf * 1
    for _ in range(3):
        x = host.run_checkpointed(double, x)
    return x


def test_in_the_backward_pass_the_next_input_is_copied_beside_the_work_of_a_block(host, monkeypatch):
    events = []
    monkeypatch.setattr(host, "_copies", LateCopies(events))
    leaf = torch.ones(3, requires_grad=True)
    y = run_three(host, events, leaf)
    events.clear()
    y.sum().backward()
    assert events == ["copy 4", "copy 2", "run 4", "copy 1", "run 2", "run 1"]
    assert y.tolist() == [8, 8, 8] and leaf.grad.tolist() == [64, 64, 64]
    assert host._copies.pending == 0


def test_a_copy_that_nobody_took_ends_before_its_place_is_used_again(host, monkeypatch):
    events = []
    monkeypatch.setattr(host, "_copies", LateCopies(events))
    leaf = torch.ones(3, requires_grad=True)
    y = run_three(host, events, leaf)
    y.grad_fn.register_hook(lambda *_: 1 / 0)  # after the last block, which has started the next copy
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()
    assert host._copies.pending == 1
    del y
    gc.collect()
    assert host._copies.pending == 0
    again = torch.ones(3, requires_grad=True)
    run_three(host, events, again).sum().backward()
    assert again.grad.tolist() == [64, 64, 64]
