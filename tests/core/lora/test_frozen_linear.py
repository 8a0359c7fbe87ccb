"""A frozen linear with a LoRA has the gradients of plain autograd, and computes and keeps less."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from smra_core.lora.adapter import Injection, LoraPair, injected
from smra_core.lora.frozen_linear import FrozenForward, freeze_plain_linear
from smra_core.wan.recompute import run_checkpointed

INPUTS, HIDDEN, RANK, TOKENS = 6, 10, 2, 5


def frozen_linear(inputs, outputs, dtype=torch.float64, **options):
    module = nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)
    module.forward = freeze_plain_linear(module, **options)
    return module


def factors(inputs, outputs):
    """Factors A and B that both have a gradient."""
    generator = torch.Generator().manual_seed(2)
    shapes = (RANK, inputs), (outputs, RANK)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("factor", [1.0, 0.35])
@pytest.mark.parametrize("shape", [(TOKENS, INPUTS), (2, TOKENS, INPUTS)], ids=["tokens", "batch"])
def test_the_gradients_are_those_of_finite_differences(factor, shape):
    forward = frozen_linear(INPUTS, HIDDEN).forward
    inputs = [torch.randn(shape, dtype=torch.float64), *factors(INPUTS, HIDDEN)]
    assert torch.autograd.gradcheck(
        lambda x, a, b: forward.with_lora(x, a, b, factor), [value.requires_grad_() for value in inputs]
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("strength, scale", [(1.0, 1.0), (0.7, 0.5)])
def test_output_and_gradients_are_those_of_plain_autograd(strength, scale, transposed):
    module, (a, b) = frozen_linear(INPUTS, HIDDEN), factors(INPUTS, HIDDEN)
    x = torch.randn(2, INPUTS, TOKENS).mT if transposed else torch.randn(2, TOKENS, INPUTS)
    found = []
    for is_plain in (False, True):
        pair, leaf = LoraPair(a.clone(), b.clone(), scale), x.double().requires_grad_()
        if is_plain:
            y = F.linear(leaf, module.weight, module.bias)
            y = y + strength * scale * F.linear(F.linear(leaf, pair.a), pair.b)
        else:
            with injected({"ffn": module}, Injection({"ffn": pair}, strength)):
                y = module(leaf)
        y.sin().sum().backward()
        found.append([y.detach(), leaf.grad, pair.a.grad, pair.b.grad])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_only_the_input_its_image_and_the_factors_are_kept():
    kept = []
    module, (a, b) = frozen_linear(INPUTS, HIDDEN), factors(INPUTS, HIDDEN)
    x = torch.randn(TOKENS, INPUTS, dtype=torch.float64, requires_grad=True)
    with saved_tensors_hooks(lambda value: kept.append(tuple(value.shape)), lambda value: value):
        module(x)
        assert kept == []
        module.forward.with_lora(x, a.requires_grad_(), b.requires_grad_(), 1.0)
    assert kept == [(TOKENS, INPUTS), (TOKENS, RANK), (RANK, INPUTS), (HIDDEN, RANK)]


def run_block(ends_block, pairs, checkpointed, uses_output=False):
    """A block that ends like WAN's: two linears, a gate and an addition. Return gradients and FLOPs."""
    torch.manual_seed(0)
    first = frozen_linear(INPUTS, HIDDEN)
    last = frozen_linear(HIDDEN, INPUTS, ends_block=ends_block)
    gate, x = torch.randn(INPUTS, dtype=torch.float64), torch.randn(TOKENS, INPUTS, dtype=torch.float64)
    linears = {"first": first, "last": last}
    lora = {name: LoraPair(*factors(*linears[name].weight.T.shape)) for name in pairs}

    def block(x):
        y = last(F.gelu(first(x)))
        return x + (y.sin() if uses_output else y) * gate

    counter, leaf = FlopCounterMode(display=False), x.requires_grad_()
    with counter, injected(linears, Injection(lora)):
        y = run_checkpointed(block, leaf) if checkpointed else block(leaf)
        y.square().sum().backward()
    grads = [leaf.grad, *(grad for pair in lora.values() for grad in (pair.a.grad, pair.b.grad))]
    return grads, counter.get_total_flops()


@pytest.mark.parametrize("pairs", [["first"], ["first", "last"]])
def test_the_last_product_of_a_block_is_not_recomputed_and_no_gradient_changes(pairs):
    expected, _ = run_block(ends_block=False, pairs=pairs, checkpointed=False)
    all_again, more = run_block(ends_block=False, pairs=pairs, checkpointed=True)
    found, fewer = run_block(ends_block=True, pairs=pairs, checkpointed=True)
    assert all(
        torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(expected, all_again, found, strict=True)
    )
    product = 2 * TOKENS * HIDDEN * INPUTS + (2 * TOKENS * RANK * INPUTS if "last" in pairs else 0)
    assert more - fewer == product


def test_an_output_that_is_used_after_all_shows_as_nan():
    grads, _ = run_block(ends_block=True, pairs=["first"], checkpointed=True, uses_output=True)
    assert all(grad.isnan().any() for grad in grads)
    grads, _ = run_block(ends_block=False, pairs=["first"], checkpointed=True, uses_output=True)
    assert all(grad.isfinite().all() for grad in grads)


def test_without_gradients_the_linears_own_forward_runs():
    asked = []
    forward = FrozenForward(3, None, lambda x: asked.append(x) or x, ends_block=False)
    with torch.no_grad():
        assert forward("x") == "x" and asked == ["x"]


def test_half_precision_keeps_the_master_weights_float32():
    module = frozen_linear(INPUTS, HIDDEN, torch.bfloat16)
    a, b = (value.float().requires_grad_() for value in factors(INPUTS, HIDDEN))
    y = module.forward.with_lora(torch.randn(TOKENS, INPUTS, dtype=torch.bfloat16), a, b, 0.5)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and a.grad.dtype == b.grad.dtype == torch.float32
