"""The feed-forward net in chunks of tokens: its gradients, its operations and its memory."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smra_core.lora.adapter import Injection, LoraPair, injected
from smra_core.lora.frozen_linear import freeze_plain_linear
from smra_core.wan import feed_forward
from smra_core.wan.feed_forward import ChunkedForward
from smra_core.wan.recompute import run_checkpointed
from tests.benchmarks.meters import LiveBytes

DIM, WIDE, TOKENS, RANK, CHUNK = 6, 24, 20, 2, 8
LAYERS = {"blocks.0.ffn.0": (WIDE, DIM), "blocks.0.ffn.2": (DIM, WIDE)}


class Block(nn.Module):
    """The end of a block: a feed-forward net on a residual."""

    def __init__(self, dim=DIM, wide=WIDE, is_chunked=True, device="cpu"):
        super().__init__()
        torch.manual_seed(0)
        self.ffn = nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, dim))
        self.to(device, torch.float64).requires_grad_(False)
        for index in (0, 2):
            self.ffn[index].forward = freeze_plain_linear(self.ffn[index], ends_block=index == 2)
        if is_chunked:
            self.ffn.forward = ChunkedForward(self.ffn.forward, [self.ffn[0], self.ffn[2]])

    def forward(self, x):
        return x + 0.5 * self.ffn(2 * x)


def run_step(block, roles=LAYERS, run=run_checkpointed, differentiate=None):
    """Output, the gradient of the input and those of the LoRA's factors."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    lora = {name: LoraPair(draw(RANK, LAYERS[name][1]), draw(LAYERS[name][0], RANK)) for name in roles}
    x, direction = draw(2, TOKENS // 2, DIM).requires_grad_(), draw(2, TOKENS // 2, DIM)
    linears = {name: block.ffn[int(name[-1])] for name in LAYERS}
    factors = [factor for pair in lora.values() for factor in (pair.a, pair.b)]
    with injected(linears, Injection(lora)):
        y = run(block, x.view_as(x))  # torch's FLOP counter takes no leaf
        return y.detach(), *torch.autograd.grad((y * direction).sum(), [x, *factors])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(feed_forward, "CHUNK_TOKENS", CHUNK)


@pytest.mark.parametrize("roles", [[], ["blocks.0.ffn.0"], list(LAYERS)], ids=str)
def test_chunks_have_the_gradients_of_the_whole_net(roles):
    whole = run_step(Block(is_chunked=False), roles)
    for found, wanted in zip(run_step(Block(), roles), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_block_that_keeps_all_has_the_same_bits_as_a_recomputed_one():
    kept = run_step(Block(), run=lambda block, x: block(x))
    assert all(map(torch.equal, run_step(Block()), kept))


def test_no_operation_is_made_more_often():
    flops = []
    for is_chunked in (False, True):
        with FlopCounterMode(display=False) as counter:
            run_step(Block(is_chunked=is_chunked))
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


def test_few_tokens_are_one_chunk_and_run_as_ever(monkeypatch):
    monkeypatch.setattr(feed_forward, "CHUNK_TOKENS", TOKENS)
    block = Block()
    monkeypatch.setattr(feed_forward, "_Deferred", None)
    assert all(map(torch.equal, run_step(block), run_step(Block(is_chunked=False))))


def test_the_backward_pass_holds_a_chunk_of_the_wide_tensors(monkeypatch):
    """Four wide tensors of all tokens, or of one chunk of four, beside the narrow ones."""
    dim, wide, tokens = 8, 512, 64
    peaks = []
    for chunk in (tokens, tokens // 4):
        monkeypatch.setattr(feed_forward, "CHUNK_TOKENS", chunk)
        block = Block(dim, wide, device="meta")
        x = torch.empty(1, tokens, dim, dtype=torch.float64, device="meta", requires_grad=True)
        y = run_checkpointed(block, x)
        with LiveBytes() as live:
            y.sum().backward()
        peaks.append(live.peak / (8 * tokens * wide))
    assert peaks[0] > 3 and peaks[1] < peaks[0] / 4 + 0.2


def test_an_error_inside_leaves_no_hooks():
    block = Block()
    block.ffn[0].forward = lambda x: 1 / 0
    x = torch.ones(1, TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ZeroDivisionError):
        run_checkpointed(block, x)
    (x * x).sum().backward()
    assert x.grad.eq(2).all()
