import pytest
import torch
from torch import nn
from toy_models import random_lora

from smra_core.lora.adapter import Injection, LoraPair, init_lora, injected
from smra_core.lora.plan import SUBJECT, SparsePlan
from smra_core.wan.spec import WanSpec

SPEC = WanSpec("tiny", blocks=2, dim=8, ffn=12, heads=1)
RANK = 3


def tiny_linears():
    torch.manual_seed(0)
    shapes = {name: SPEC.linear_shape(name) for name in SPEC.linear_names()}
    return {name: nn.Linear(inputs, outputs) for name, (outputs, inputs) in shapes.items()}


def test_a_new_lora_changes_nothing_and_has_bounded_a():
    lora = init_lora(SPEC, SUBJECT, RANK, torch.Generator().manual_seed(0))
    assert list(lora) == SUBJECT.select(SPEC.linear_names())
    for pair in lora.values():
        assert pair.rank == RANK and not pair.b.any()
        assert pair.a.abs().max() <= pair.a.shape[1] ** -0.5 and pair.a.std() > 0


def test_a_new_lora_depends_on_its_generator_alone():
    first = init_lora(SPEC, SUBJECT, RANK, torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    second = init_lora(SPEC, SUBJECT, RANK, torch.Generator().manual_seed(5))
    assert all(torch.equal(first[name].a, second[name].a) for name in first)


def test_injection_adds_strength_times_scale_times_b_a_x():
    linears, lora = tiny_linears(), random_lora(SPEC, SUBJECT, scale=0.5)
    name = "blocks.1.ffn.0"
    x = torch.randn(4, SPEC.dim)
    plain = linears[name](x)
    with injected(linears, Injection(lora, 0.7)):
        changed = linears[name](x)
    by_hand = plain + 0.7 * 0.5 * x @ (lora[name].b @ lora[name].a).T
    torch.testing.assert_close(changed, by_hand, rtol=0, atol=1e-6)


def test_two_loras_add_up_on_the_linear_that_both_touch():
    linears, one, two = (
        tiny_linears(),
        random_lora(SPEC, SUBJECT, scale=0.5),
        random_lora(SPEC, SparsePlan.parse("ffn.0,v"), scale=0.25),
    )
    x = torch.randn(4, SPEC.dim)
    plain = linears["blocks.0.ffn.0"](x)
    with injected(linears, Injection(one), Injection(two, 2.0)):
        both = linears["blocks.0.ffn.0"](x)
    delta = one["blocks.0.ffn.0"].delta() + 2 * two["blocks.0.ffn.0"].delta()
    torch.testing.assert_close(both, plain + x @ delta.T, rtol=0, atol=1e-6)


def test_an_output_is_changed_in_place_only_where_no_gradient_is_taken():
    pair = LoraPair(torch.ones(2, 3), torch.ones(4, 2), scale=0.5)
    x, y = torch.ones(5, 3), torch.zeros(5, 4)
    assert torch.equal(pair.add_to(y, x, 2.0), torch.full((5, 4), 6.0)) and not y.any()
    with torch.no_grad():
        assert pair.add_to(y, x, 2.0).data_ptr() == y.data_ptr() and torch.equal(y, torch.full((5, 4), 6.0))


def test_strength_zero_keeps_the_bases_bits():
    linears, lora = tiny_linears(), random_lora(SPEC, SUBJECT, scale=0.5)
    x = torch.randn(4, SPEC.dim)
    plain = linears["blocks.0.self_attn.q"](x)
    with injected(linears, Injection(lora, 0.0)):
        assert torch.equal(linears["blocks.0.self_attn.q"](x), plain)


def test_the_strength_can_change_while_injected():
    linears, lora = tiny_linears(), random_lora(SPEC, SUBJECT, scale=0.5)
    injection, x = Injection(lora, 0.0), torch.randn(4, SPEC.dim)
    with injected(linears, injection):
        before = linears["blocks.0.ffn.0"](x)
        injection.strength = 1.0
        assert not torch.equal(linears["blocks.0.ffn.0"](x), before)


def test_modules_are_left_as_found_also_after_an_error():
    linears, lora = tiny_linears(), random_lora(SPEC, SUBJECT, scale=0.5)
    patched = linears["blocks.0.ffn.0"]
    foreign = lambda x: nn.Linear.forward(patched, x) + 1  # noqa: E731 - somebody else's patch
    patched.forward = foreign
    with pytest.raises(RuntimeError, match="boom"), injected(linears, Injection(lora)):
        raise RuntimeError("boom")
    assert patched.__dict__["forward"] is foreign
    others = [module for name, module in linears.items() if name != "blocks.0.ffn.0"]
    assert all("forward" not in module.__dict__ for module in others)


def test_a_lora_for_a_bigger_model_is_refused_before_anything_is_patched():
    linears = tiny_linears()
    lora = {"blocks.5.ffn.0": LoraPair(torch.zeros(RANK, 8), torch.zeros(12, RANK))}
    with pytest.raises(ValueError, match=r"blocks\.5\.ffn\.0"), injected(linears, Injection(lora)):
        pass
    wide = {"blocks.0.ffn.0": LoraPair(torch.zeros(RANK, 9), torch.zeros(12, RANK))}
    with pytest.raises(ValueError, match=r"\(12, 9\)"), injected(linears, Injection(wide)):
        pass
    assert all("forward" not in module.__dict__ for module in linears.values())


def test_gradients_reach_both_factors_and_never_the_base():
    linears, lora = tiny_linears(), random_lora(SPEC, SUBJECT, scale=0.5)
    for module in linears.values():
        module.requires_grad_(False)
    with injected(linears, Injection(lora)):
        linears["blocks.0.ffn.0"](torch.randn(4, SPEC.dim)).square().sum().backward()
    pair = lora["blocks.0.ffn.0"]
    assert pair.a.grad.abs().sum() > 0 and pair.b.grad.abs().sum() > 0
    assert linears["blocks.0.ffn.0"].weight.grad is None
