"""Blocks that wait in host memory, on a card: bits, what stays, and what pinned memory is left registered."""

import gc

import pytest
import torch

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import ALL_LAYERS
from smra_core.miniature.model_files import MINIATURE_FILES
from smra_core.standalone.waiting_blocks import Placement
from smra_core.wan import feed_forward
from smra_core.wan.recompute import KeptBlocks
from smra_core.wan.stored_form import restore_values

RANK, SIDE = 4, 8


def differentiate(denoiser, device):
    spec = denoiser.spec
    lora = init_lora(spec, ALL_LAYERS, RANK, torch.Generator().manual_seed(0))
    for index, pair in enumerate(lora.values()):
        torch.nn.init.normal_(pair.b, std=0.1, generator=torch.Generator().manual_seed(index))
        pair.to(device)
    generator = torch.Generator().manual_seed(1)
    width = denoiser.dit.config.text_dim
    shapes = (1, 16, 3, SIDE, SIDE), (1, 4, width)
    latents, context = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    gradients = []
    with injected(denoiser.linears(), Injection(lora)):
        for _ in range(3):  # the second step begins with the blocks that the first one left
            for pair in lora.values():
                pair.zero_grad()
            denoiser.velocity(latents, torch.tensor([0.4], device=device), context).velocity.sum().backward()
            gradients += [each.grad.clone() for pair in lora.values() for each in pair.parameters()]
    return gradients


@pytest.fixture
def deterministic(monkeypatch):
    """Let the device add up in the same order each time."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resident", [0, 2])
def test_gradients_are_bit_equal_to_those_of_the_resident_model(device, deterministic, dtype, resident):
    expected = differentiate(MINIATURE_FILES.load_denoiser(dtype, device, True), device)
    streamed = MINIATURE_FILES.load_denoiser(dtype, device, True, Placement(resident=resident))
    got = differentiate(streamed, device)
    streamed.close()
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_gradients_are_bit_equal_where_inputs_wait_and_nets_are_in_chunks(device, deterministic, monkeypatch):
    monkeypatch.setattr(feed_forward, "CHUNK_TOKENS", 16)  # of 3 x 4 x 4
    expected = differentiate(MINIATURE_FILES.load_denoiser(torch.float32, device, True), device)
    for kept in (KeptBlocks(staying=0), KeptBlocks(1, 1, 1), KeptBlocks(2)):
        denoiser = MINIATURE_FILES.load_denoiser(torch.float32, device, True)
        denoiser.kept_blocks = kept
        got = differentiate(denoiser, device)
        denoiser.close()
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_fp8_is_restored_to_the_bits_that_the_cpu_gives(device):
    values = (100 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).to(torch.float8_e4m3fn)
    for scale in torch.logspace(-6, 1, 20) / 3:
        expected = restore_values(values, scale, torch.bfloat16)
        assert torch.equal(restore_values(values.to(device), scale.item(), torch.bfloat16).cpu(), expected)


def test_a_closed_model_leaves_nothing_on_the_card(cuda):
    held = []
    for _ in range(3):
        denoiser = MINIATURE_FILES.load_denoiser(torch.bfloat16, cuda, True, Placement(resident=0))
        differentiate(denoiser, cuda)
        denoiser.close()
        del denoiser
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[1] == held[2]  # libraries keep workspaces from their first use on


def test_the_weights_that_wait_are_pinned(cuda):
    denoiser = MINIATURE_FILES.load_denoiser(torch.bfloat16, cuda, True, Placement(resident=0))
    pieces = list(denoiser.waiting._pieces._pieces)
    assert len(pieces) == denoiser.spec.blocks and all(piece.is_pinned() for piece in pieces)
    denoiser.close()
    assert not any(piece.is_pinned() for piece in pieces)
