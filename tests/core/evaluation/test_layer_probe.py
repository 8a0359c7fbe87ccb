"""What groups of a LoRA's layers contribute, by hand and on a toy model."""

from functools import partial

import pytest
import torch
from toy_models import ToyDenoiser, make_contexts

from smra_core.evaluation.bar_plot import LEFT, RIGHT, TOP, WIDTH, BarGroup, draw_bar_plot
from smra_core.evaluation.layer_probe import (
    ProbeSettings,
    count_measurements,
    measure_layers,
    render_probe,
)
from smra_core.evaluation.probe_plot import draw_probe
from smra_core.evaluation.velocity_change import VelocityChange, compute_projection
from smra_core.lora.adapter import LoraPair, init_lora
from smra_core.lora.layer_groups import keep_group
from smra_core.lora.plan import ALL_LAYERS, SUBJECT, SparsePlan
from smra_core.wan.spec import Role, WanSpec, parse_linear

BLOCKS = 4
SPEC = WanSpec("tiny", BLOCKS, dim=4, ffn=6, heads=1)
ROLE_WEIGHTS = {Role.Q: 1, Role.K: 3, Role.FFN_0: 6}
BLOCK_WEIGHTS = {0: 1, 1: 4, 2: 4, 3: 1}
SIGMAS = [1.0, 0.75, 0.5, 0.0]


def measure_by_hand(part):
    """Share of 100 that is spread over roles and blocks; a role has two layers in a block, FFN.0 one."""
    layers = {(parse_linear(name).block, parse_linear(name).role) for name in part}
    return sum(ROLE_WEIGHTS[role] * BLOCK_WEIGHTS[block] for block, role in layers) / 100


def probe_by_hand(keep, ranges=BLOCKS):
    lora = init_lora(SPEC, SUBJECT, 2, torch.Generator().manual_seed(0))
    return measure_layers(lora, measure_by_hand, ProbeSettings(ranges, keep))


def test_shares_of_roles_and_blocks_are_those_that_were_put_in():
    probe = probe_by_hand(0.9)
    assert [one.alone for one in probe.roles] == pytest.approx([0.1, 0.3, 0.6])
    assert [one.lost for one in probe.roles] == pytest.approx([0.1, 0.3, 0.6])
    assert [one.alone for one in probe.blocks] == pytest.approx([0.1, 0.4, 0.4, 0.1])
    assert [one.label for one in probe.roles] == ["q", "k", "ffn.0"]
    assert [one.label for one in probe_by_hand(0.9, 2).blocks] == ["blocks 0-1", "blocks 2-3"]


def test_roles_are_added_until_enough_is_kept_then_blocks_are_left_out_at_the_weaker_end():
    # K and FFN.0 keep 90 %; of these, blocks 1 to 3 keep 81 % and blocks 1 and 2 keep 72 %.
    for keep, plan, kept in (
        (0.95, "q,k,ffn.0", 1.0),
        (0.9, "k,ffn.0", 0.9),
        (0.8, "k,ffn.0@1:4", 0.81),
        (0.7, "k,ffn.0@1:3", 0.72),
        (0.5, "ffn.0@1:4", 0.54),
    ):
        probe = probe_by_hand(keep)
        assert (str(probe.plan), probe.kept) == (plan, pytest.approx(kept)), keep
        assert SparsePlan.parse(str(probe.plan)) == probe.plan


def test_no_more_is_measured_than_was_announced():
    lora = init_lora(SPEC, SUBJECT, 2, torch.Generator().manual_seed(0))
    for keep in (0.01, 0.5, 1.0):
        settings, steps = ProbeSettings(BLOCKS, keep), []
        measure_layers(lora, measure_by_hand, settings, partial(steps.append, 1))
        assert len(steps) <= count_measurements(lora, settings) == 19


def test_the_text_holds_each_share_and_a_plan_that_can_be_pasted():
    text = render_probe(probe_by_hand(0.8))
    assert "ffn.0              60%           60%" in text
    assert "plan: k,ffn.0@1:4" in text and "keeps 81% of the effect with 9 of 20 layers" in text


@pytest.mark.parametrize("bad", [{"keep": 0.0}, {"keep": 1.1}, {"block_ranges": 0}])
def test_settings_that_cannot_be_met_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ProbeSettings(**bad)


def test_a_projection_is_the_coefficient_on_the_whole():
    whole = [torch.tensor([3.0, 4.0]), torch.tensor([0.0])]
    assert compute_projection(whole, whole) == 1.0
    assert compute_projection([torch.tensor([1.5, 2.0]), torch.tensor([7.0])], whole) == 0.5
    assert compute_projection([torch.tensor([-4.0, 3.0]), torch.tensor([0.0])], whole) == 0.0
    assert compute_projection([-whole[0], whole[1]], whole) == -1.0


def record_toy(blocks, scale=1.0):
    """A recorded run of a toy model, and its LoRA with random weights."""
    denoiser = ToyDenoiser(blocks)
    generator = torch.Generator().manual_seed(7)
    lora = {
        name: LoraPair(pair.a.detach(), scale * torch.randn(pair.b.shape, generator=generator))
        for name, pair in init_lora(denoiser.spec, ALL_LAYERS, 2, generator).items()
    }
    measure = VelocityChange(denoiser, make_contexts()[0])
    measure.record(lora, torch.randn(1, 16, 2, 4, 4, generator=generator), SIGMAS)
    return measure, lora


def test_the_whole_lora_is_1_and_none_of_it_is_0():
    measure, lora = record_toy(2)
    assert measure(lora) == pytest.approx(1.0, abs=1e-6) and measure({}) == 0.0
    assert len(measure.points) == len(SIGMAS) - 1
    assert [point.sigma for point in measure.points] == SIGMAS[:-1]


def test_the_recorded_run_is_sampled_with_the_whole_lora():
    measure, _ = record_toy(2)
    first, second = measure.points[:2]
    moved = first.latents + (second.sigma - first.sigma) * (first.base + first.change)
    torch.testing.assert_close(second.latents, moved)


def test_small_changes_of_groups_add_up_to_the_whole():
    """To first order a model is linear in its weights, so that the shares of all roles sum to 1."""
    measure, lora = record_toy(2, scale=1e-3)
    probe = measure_layers(lora, measure, ProbeSettings())
    for group in (probe.roles, probe.blocks):
        assert sum(one.alone for one in group) == pytest.approx(1.0, abs=0.02)
        assert sum(one.lost for one in group) == pytest.approx(1.0, abs=0.02)


def test_a_role_with_larger_weights_contributes_more():
    measure, lora = record_toy(2, scale=1e-2)
    measure_before = measure_layers(lora, measure, ProbeSettings()).roles
    v = frozenset({Role.V})
    for pair in keep_group(lora, SparsePlan(v)).values():
        pair.b.data *= 10
    measure.record(lora, measure.points[0].latents, SIGMAS)
    after = measure_layers(lora, measure, ProbeSettings()).roles
    assert measure_before[2].plan.roles == after[2].plan.roles == v
    assert after[2].alone > max(0.5, measure_before[2].alone)
    assert after[2].alone == max(one.alone for one in after)


def test_a_lora_of_zeros_is_refused():
    measure, lora = record_toy(2)
    for pair in lora.values():
        pair.b.data.zero_()
    with pytest.raises(ValueError, match="changes nothing"):
        measure.record(lora, measure.points[0].latents, SIGMAS)


def test_bars_are_as_long_as_their_shares():
    picture = draw_bar_plot([BarGroup("q", (0.5,)), BarGroup("k", (0.0,))], [("alone", "#0000ff")])
    row = [picture.getpixel((x, TOP + 4)) for x in range(WIDTH)]
    blue = [x for x, color in enumerate(row) if color == (0, 0, 255)]
    assert (blue[0], len(blue)) == (LEFT, pytest.approx((WIDTH - LEFT - RIGHT) / 2, abs=2))


def test_the_chart_has_two_bars_for_each_group():
    small, large = draw_probe(probe_by_hand(0.9, 1)), draw_probe(probe_by_hand(0.9, 4))
    assert large.height - small.height == 3 * 36 and large.width == small.width
