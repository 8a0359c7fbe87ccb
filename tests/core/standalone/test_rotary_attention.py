"""Positions are rotated by a complex product: diffusers' own numbers, with fewer calls of torch."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from smra_core.standalone.rotary_attention import make_rotation, rotate, use_complex_rotation


def make_dit(dtype=torch.float64):
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=2, text_dim=8, freq_dim=8
    ).to(dtype)  # fmt: skip


def run(dit, dtype):
    """Return the velocity of fixed inputs, and the gradient of its mean square by the first q's weight."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 16, 3, 4, 6, generator=generator, dtype=torch.float64).to(dtype)
    context = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64).to(dtype)
    velocity = dit(noisy, torch.tensor([400.0, 700.0]).to(dtype), context, return_dict=False)[0]
    weight = dit.blocks[0].attn1.to_q.weight
    return velocity, torch.autograd.grad(velocity.square().mean(), weight)[0]


def test_a_pair_is_turned_by_its_angle():
    quarter = make_rotation(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    turned = rotate(torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2), quarter)
    assert turned.flatten().tolist() == [-4, 3]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_velocity_and_gradient_are_those_of_diffusers(dtype, tolerance):
    expected = run(make_dit(dtype), dtype)
    dit = make_dit(dtype)
    use_complex_rotation(dit)
    for own, theirs in zip(run(dit, dtype), expected, strict=True):
        assert own.dtype == theirs.dtype
        assert (own - theirs).abs().max() <= tolerance * theirs.abs().max()
