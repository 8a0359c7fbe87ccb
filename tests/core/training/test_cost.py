from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import ALL_LAYERS, MOTION, SUBJECT
from smra_core.training.cost import (
    count_activation_bytes,
    count_alignment_flops,
    count_forward_flops,
    count_input_bytes,
    count_lora_parameters,
    count_optimizer_bytes,
    count_sampling_bytes,
    count_step_flops,
)
from smra_core.training.motion_settings import MotionSettings
from smra_core.wan.block_stream import Copies
from smra_core.wan.recompute import KeptBlocks
from smra_core.wan.spec import WAN_1_3B, WAN_5B, WAN_14B, WanSpec
from tests.benchmarks.meters import CachedShapes, LiveBytes, flash_attention
from tests.benchmarks.motion_step import Step

BLOCKS = 3


@pytest.mark.parametrize(
    ("spec", "size", "plan", "waiting"),
    [
        (WAN_1_3B, (1, 512, 512), SUBJECT, 0),
        (WAN_14B, (49, 576, 320), MOTION, 0),
        (WAN_14B, (49, 576, 320), MOTION, BLOCKS - 1),
    ],
)
def test_activations_are_those_counted_on_meta_tensors(spec, size, plan, waiting, monkeypatch):
    """Each further block adds its input alone, so that few blocks are enough."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    monkeypatch.setattr(Copies, "start", lambda *args: None)  # a meta tensor cannot be copied to the host
    step = Step(MotionSettings(), BLOCKS, spec=spec)
    step.denoiser(True).kept_blocks = KeptBlocks(staying=BLOCKS - waiting)
    shape = (1, *spec.latents.latent_shape(*size))
    target = step.draw(*shape)
    run = step.make_step(plan, 32, lambda noisy, velocity, tokens: (velocity - target).square(), shape)
    with flash_attention(), CachedShapes(), LiveBytes() as live:
        run()
    tokens = spec.latents.count_tokens(*size)
    told = count_activation_bytes(replace(spec, blocks=BLOCKS), tokens) - waiting * count_input_bytes(
        spec, tokens
    )
    assert told == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("spec", [WAN_1_3B, WAN_14B], ids=lambda spec: spec.name)
def test_an_evaluation_takes_what_was_counted_on_meta_tensors(spec, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    step = Step(MotionSettings(), 1, spec=spec)
    denoiser, noisy = step.denoiser(True), step.draw(*step.shape)
    lora = init_lora(denoiser.spec, ALL_LAYERS, 32, torch.Generator())
    for pair in lora.values():
        pair.to("meta", torch.bfloat16)
    inputs = noisy, step.make_sigma(), step.draw(1, 512, 4096, dtype=torch.bfloat16)
    with flash_attention(), CachedShapes(), LiveBytes() as live, torch.no_grad():
        with injected(denoiser.linears(), Injection(lora)):
            denoiser.velocity(*inputs)
    assert count_sampling_bytes(spec, 9360) == pytest.approx(live.peak, rel=0.05)


def test_activations_grow_with_batch_and_bytes():
    one = count_activation_bytes(WAN_1_3B, 1024)
    assert count_activation_bytes(WAN_1_3B, 1024, batch=3) == 3 * one
    assert count_activation_bytes(WAN_1_3B, 1024, value_bytes=4) == 2 * one


def test_parameters_of_a_lora_by_hand():
    spec = WanSpec("toy", blocks=1, dim=8, ffn=20, heads=1)
    # Q and K of both attentions: 4 x 2 x (8 + 8); FFN.0: 2 x (8 + 20).
    assert count_lora_parameters(spec, SUBJECT.select(spec.linear_names()), 2) == 4 * 32 + 56
    assert count_lora_parameters(spec, MOTION.select(spec.linear_names()), 2) == 4 * 32 + 2 * 56
    assert count_optimizer_bytes(10) == 160


def test_flops_by_hand():
    spec = WanSpec("toy", blocks=1, dim=2, ffn=3, heads=1)
    # 5 tokens, 512 of text: six products of dim x dim and two of dim x ffn a token; K and V of the text; and
    # twice two products of attention, of which backward has five.
    linears = 2 * 5 * (6 * 4 + 2 * 6) + 2 * 512 * 2 * 4
    attention = 2 * 2 * 5 * (5 + 512) * 2
    assert count_step_flops(spec, 5) == 3 * linears + 2 * attention + 5 / 2 * attention
    assert count_forward_flops(spec, 5) == linears + attention


@pytest.mark.parametrize(("tokens", "counted"), [(9360, 151.4), (32760, 1163.0)])
def test_flops_are_those_counted_on_meta_tensors(tokens, counted):
    assert count_step_flops(WAN_1_3B, tokens) / 1e12 == pytest.approx(counted, rel=0.03)


TF = 1e12


def count_decoding(decode, recompute=False, spec=WAN_1_3B, **changes):
    return count_alignment_flops(MotionSettings(**changes), decode, recompute, spec.latents)


def flops_of_step(decode, recompute=False, spec=WAN_1_3B):
    tokens = spec.latents.count_tokens(49, 576, 320)
    return count_step_flops(spec, tokens) + count_decoding(decode, recompute, spec)


# By python -m tests.benchmarks.motion_step, for TI2V-5B with --model Wan2.2-TI2V-5B.
@pytest.mark.parametrize(
    ("decode", "recompute", "counted", "counted_5b"),
    [
        ("windowed", False, 206.1, 191.9), ("windowed", True, 217.7, 218.7), ("exact", True, 345.6, 493.8),
        ("exact-low-memory", False, 388.2, 582.0), ("tiny", False, 162.7, 82.4),
    ],
)  # fmt: skip
def test_a_step_takes_what_was_counted_on_meta_tensors(decode, recompute, counted, counted_5b):
    assert flops_of_step(decode, recompute) / TF == pytest.approx(counted, rel=0.03)
    assert flops_of_step(decode, recompute, WAN_5B) / TF == pytest.approx(counted_5b, rel=0.03)


def test_the_ways_to_decode_are_in_their_order():
    ways = [
        flops_of_step("tiny"),
        flops_of_step("windowed"),
        flops_of_step("windowed", True),
        flops_of_step("exact"),
        flops_of_step("exact", True),
    ]
    assert sorted(ways) == ways and ways[-1] < flops_of_step("exact-low-memory")


def test_a_window_longer_than_the_clip_costs_no_more_than_the_clip():
    assert count_decoding("windowed", window=40, context=4) == count_decoding("exact")


def test_each_window_of_a_step_costs_the_same_and_there_are_no_more_than_the_clip_has():
    one = count_decoding("windowed")
    assert count_decoding("windowed", windows_per_step=2) == 2 * one
    assert count_decoding("windowed", windows_per_step=9) == 4 * one  # 12 latents in windows of 3


def test_it_grows_with_pixels_and_is_nothing_without_the_loss():
    assert count_decoding("exact", width=288) == count_decoding("exact") / 2
    assert count_decoding("exact", mora_weight=0.0) == 0
