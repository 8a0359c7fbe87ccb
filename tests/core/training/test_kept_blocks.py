"""Blocks keep activations as memory allows, and no gradient depends on it."""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import ALL_LAYERS
from smra_core.standalone.diffusers_wan import DiffusersDenoiser
from smra_core.training import kept_blocks
from smra_core.training.kept_blocks import choose_kept_blocks, measure_host_memory, measure_spare_memory
from smra_core.training.motion_settings import MotionSettings
from smra_core.wan import feed_forward
from smra_core.wan.recompute import KeptBlocks
from smra_core.wan.spec import WAN_1_3B
from tests.benchmarks.meters import count_step
from tests.benchmarks.motion_step import Step

BLOCKS, TOKENS = 4, 9360


class Calls(TorchDispatchMode):
    """Counts calls of operators by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def run_step(kept):
    """A step of a small DiT; return its gradients, its FLOPs without attention, and its attentions."""
    torch.manual_seed(0)
    dit = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=BLOCKS, text_dim=8, freq_dim=8
    )
    denoiser = DiffusersDenoiser(dit, checkpoint=True)
    denoiser.kept_blocks = kept
    lora = init_lora(denoiser.spec, ALL_LAYERS, 2, torch.Generator().manual_seed(0))
    for pair in lora.values():
        torch.nn.init.normal_(pair.b)
    noisy, context = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 3, 8)
    counter, calls = FlopCounterMode(display=False), Calls()
    with counter, calls, injected(denoiser.linears(), Injection(lora)):
        velocity, tokens = denoiser.velocity(noisy, torch.tensor([0.4]), context, token_block=1)
        (velocity.square().mean() + tokens.square().mean()).backward()
    grads = [grad for pair in lora.values() for grad in (pair.a.grad, pair.b.grad)]
    return grads, counter.get_total_flops(), calls.count["_scaled_dot_product_flash_attention_for_cpu"]


def test_the_gradients_are_equal_bit_for_bit_whatever_is_kept(monkeypatch):
    monkeypatch.setattr(feed_forward, "CHUNK_TOKENS", 12)
    choices = [
        KeptBlocks(BLOCKS), KeptBlocks(2, 1), KeptBlocks(1, 3), KeptBlocks(0, BLOCKS), KeptBlocks(),
    ]  # fmt: skip
    waiting = [KeptBlocks(0, 0, 0), KeptBlocks(1, 1, 1)]
    steps = [run_step(kept) for kept in choices]
    for grads, _, _ in [*steps[1:], *map(run_step, waiting)]:
        assert all(torch.equal(one, other) for one, other in zip(steps[0][0], grads, strict=True))
    whole, two, one, none, nothing = (flops for _, flops, _ in steps)
    assert whole < two < one < none == nothing
    # Two attentions a block, forward and wherever they are recomputed; that to the text is never kept alone.
    assert [attentions for _, _, attentions in steps] == [8, 8 + 2 + 1, 8 + 3, 8 + 4, 8 + 8]


@pytest.mark.parametrize("value_bytes", [2, 4])
def test_attention_comes_first_and_whole_blocks_where_more_is_spare(value_bytes):
    block = TOKENS * WAN_1_3B.dim * value_bytes
    choose = lambda units: choose_kept_blocks(WAN_1_3B, TOKENS, 1, value_bytes, units * block)  # noqa: E731
    assert choose(-1) == choose(0) == choose(1) == KeptBlocks()
    assert choose(20) == KeptBlocks(0, 14)
    assert choose(60) == KeptBlocks(0, 30)
    assert choose(1000) == KeptBlocks(14, 16)
    assert choose(3000) == KeptBlocks(30, 0)


def test_the_last_block_is_kept_whole_where_that_costs_nothing():
    block = TOKENS * WAN_1_3B.dim * 2
    choose = lambda units: choose_kept_blocks(WAN_1_3B, TOKENS, 1, 2, units * block, free=1)  # noqa: E731
    assert choose(-1) == choose(0) == KeptBlocks(1)
    assert choose(20) == KeptBlocks(1, 14)
    assert choose(1900) == KeptBlocks(28, 2)
    assert choose(2010) == KeptBlocks(30, 0)


def test_keeping_the_last_block_takes_no_more_memory_and_less_work():
    def count(kept):
        torch.manual_seed(0)
        with torch.device("meta"):
            dit = WanTransformer3DModel(
                num_attention_heads=1, attention_head_dim=128, ffn_dim=512, num_layers=3, text_dim=8
            )
        denoiser = DiffusersDenoiser(dit, checkpoint=True)
        denoiser.kept_blocks = kept
        lora = init_lora(denoiser.spec, ALL_LAYERS, 4, torch.Generator())
        for pair in lora.values():
            pair.to("meta")
        noisy = torch.randn(1, 16, 1, 64, 64, device="meta")
        inputs = noisy, torch.rand(1, device="meta"), torch.randn(1, 8, 8, device="meta")

        def step():
            with injected(denoiser.linears(), Injection(lora)):
                denoiser.velocity(*inputs).velocity.square().mean().backward()

        return count_step(step)

    nothing, last, two = count(KeptBlocks()), count(KeptBlocks(1)), count(KeptBlocks(2))
    assert last.flops < 0.95 * nothing.flops
    assert last.peak <= 1.01 * nothing.peak < 0.8 * two.peak


def test_self_attention_of_a_block_is_kept_in_one_tensor_more_and_not_computed_again(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    spec, blocks = WAN_1_3B, 2
    step = Step(MotionSettings(), blocks)
    run = step.make_motion_step()

    def count(kept):
        step.denoiser(True).kept_blocks = kept
        return count_step(run)

    none, both = count(KeptBlocks()), count(KeptBlocks(0, blocks))
    assert none.flops - both.flops == blocks * 4 * TOKENS**2 * spec.dim
    # The last block is recomputed at once, into as much memory: one tensor more is kept.
    assert 1 < (both.peak - none.peak) / (TOKENS * spec.dim * 2) < kept_blocks._ATTENTION


def test_more_memory_never_keeps_less_and_what_is_kept_fits():
    whole, attention = (WAN_1_3B.dim * 2 * 1.3 * size for size in (50 * (TOKENS + 512), 1.05 * TOKENS))
    before = -1.0
    for spare in range(0, 80_000_000_000, 500_000_000):
        kept = choose_kept_blocks(WAN_1_3B, TOKENS, 1, 2, spare)
        needed = whole * kept.whole + attention * kept.attention
        with_free = choose_kept_blocks(WAN_1_3B, TOKENS, 1, 2, spare, free=1)
        assert whole * (with_free.whole - 1) + attention * with_free.attention <= spare + 1
        assert with_free.whole >= max(1, kept.whole) and with_free.attention <= WAN_1_3B.blocks - 1
        assert needed <= spare + 1 and kept.whole + kept.attention <= WAN_1_3B.blocks
        assert (saved := 3 * kept.whole + kept.attention) >= before
        before = saved


def test_where_memory_is_missing_the_inputs_of_as_many_blocks_wait():
    size = TOKENS * WAN_1_3B.dim * 2
    choose = lambda spare, host: choose_kept_blocks(WAN_1_3B, TOKENS, 1, 2, spare, 1, host)  # noqa: E731
    assert choose(-0.1 * size, 1e12) == KeptBlocks(staying=29)
    assert choose(-7 * 1.3 * size, 1e12) == choose(-7 * 1.3 * size, float("inf")) == KeptBlocks(staying=23)
    assert choose(-100 * size, 1e12) == KeptBlocks(staying=0)
    assert choose(-100 * size, 3.5 * size) == KeptBlocks(staying=27)
    assert choose(-100 * size, 0) == KeptBlocks(1)


def test_what_waits_beside_a_card_leaves_host_memory_free(monkeypatch):
    monkeypatch.setattr(kept_blocks, "_measure_free_memory", lambda device: 9e9)
    assert measure_host_memory(torch.device("cuda")) == 7e9
    assert measure_host_memory(torch.device("cpu")) == measure_host_memory(torch.device("mps")) == 0
    monkeypatch.setattr(kept_blocks, "_measure_free_memory", lambda device: 1e9)
    assert measure_host_memory(torch.device("cuda")) == 0
    monkeypatch.setattr(kept_blocks, "_measure_free_memory", lambda device: None)
    assert measure_host_memory(torch.device("cuda")) == float("inf")


def test_spare_is_what_is_free_beside_the_step(monkeypatch):
    monkeypatch.setattr(kept_blocks, "_measure_free_memory", lambda device: 10e9)
    assert measure_spare_memory(torch.device("cpu"), 2e9) == pytest.approx(10e9 - 1.3 * 2e9 - 0.5e9)
    monkeypatch.setattr(kept_blocks, "_measure_free_memory", lambda device: None)
    assert measure_spare_memory(torch.device("mps"), 2e9) == 0


def test_on_a_card_what_torch_has_cached_is_free_too(monkeypatch):
    card = SimpleNamespace(
        memory_reserved=lambda device: 5,
        memory_allocated=lambda device: 3,
        mem_get_info=lambda device: (7, 9),
    )
    monkeypatch.setattr(kept_blocks.torch, "cuda", card)
    assert kept_blocks._measure_free_memory(torch.device("cuda")) == 7 + 5 - 3
