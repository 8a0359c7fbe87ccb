"""LoRAs whose strengths switch on a compiled DiT, by the loader node's swap and by the core's own way."""

import pytest
import torch
from toy_models import random_lora

from smra_core.lora.plan import SUBJECT
from smra_core.lora.schedule import ScheduledLora, Strengths, TPoint, scheduled
from smra_core.standalone.diffusers_wan import DiffusersDenoiser
from smra_core.wan.spec import TEXT_DIM, WanSpec
from tests.benchmarks.gpu.models import make_denoiser, make_dit
from tests.benchmarks.gpu.node_swap import SwappedDenoiser

LEVELS, T_POINT = (1.0, 0.7, 0.4, 0.0), TPoint(0.7)
SPEC = WanSpec("tiny", blocks=2, dim=32, ffn=48, heads=2)
WAITING = WanSpec("tiny", blocks=3, dim=32, ffn=48, heads=2)
CLOSE = 2e-4


@pytest.fixture
def denoiser(cuda, full_float32):
    """A DiT without a compiler's leftovers of other tests."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    made = make_denoiser(SPEC, torch.float32, cuda, checkpoint=False)
    torch.nn.init.normal_(made.dit.proj_out.weight, std=0.05)
    return made


def evaluate(denoiser, device, before=lambda level: None):
    """Velocities at all noise levels of a run, in a row."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 16, 2, 4, 4, generator=generator).to(device)
    context = torch.randn(1, 8, TEXT_DIM, generator=generator).to(device)
    found = []
    for level in LEVELS[:-1]:
        before(level)
        with torch.no_grad():
            found.append(denoiser.velocity(noisy, torch.full((1,), level, device=device), context).velocity)
    return torch.cat(found)


def make_lora(device):
    lora = random_lora(SPEC, SUBJECT, std=0.3)
    for pair in lora.values():
        pair.to(device)
    return [ScheduledLora(lora, Strengths(0.4, 0.8))]


def test_the_nodes_swap_has_its_effect_on_a_compiled_model_and_compiles_nothing_anew(cuda, denoiser):
    from torch._dynamo.utils import counters

    loras = make_lora(cuda)
    base = evaluate(denoiser, cuda)
    with scheduled(denoiser.linears(), loras, T_POINT, LEVELS) as set_strengths:
        reference = evaluate(denoiser, cuda, set_strengths)
    assert (reference - base).abs().max() > 100 * CLOSE
    denoiser.dit.compile()
    swapped = SwappedDenoiser(denoiser, loras, T_POINT, torch.tensor(LEVELS), torch.float32)
    assert (evaluate(swapped, cuda) - reference).abs().max() < CLOSE
    known = counters["stats"]["unique_graphs"]
    assert (evaluate(swapped, cuda) - reference).abs().max() < CLOSE
    assert counters["stats"]["unique_graphs"] == known > 0
    assert (evaluate(denoiser, cuda) - base).abs().max() < CLOSE


def test_a_compiled_model_whose_blocks_wait_gives_what_it_gives_uncompiled(device):
    """The copies go on beside what is compiled. Without a card the compiler only records."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    dit = make_dit(WAITING, torch.float32, device)
    torch.nn.init.normal_(dit.proj_out.weight, std=0.05)
    denoiser = DiffusersDenoiser(dit, device=device, resident=0)
    expected = evaluate(denoiser, device)
    for block in dit.blocks:
        block.compile(backend="inductor" if device.type == "cuda" else "eager")
    assert (evaluate(denoiser, device) - expected).abs().max() < CLOSE
    denoiser.close()
    torch._dynamo.reset()


def test_the_cores_schedule_has_its_effect_on_a_compiled_model(cuda, denoiser):
    loras = make_lora(cuda)
    with scheduled(denoiser.linears(), loras, T_POINT, LEVELS) as set_strengths:
        reference = evaluate(denoiser, cuda, set_strengths)
    denoiser.dit.compile()
    with scheduled(denoiser.linears(), loras, T_POINT, LEVELS) as set_strengths:
        assert (evaluate(denoiser, cuda, set_strengths) - reference).abs().max() < CLOSE
