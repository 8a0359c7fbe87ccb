"""T_point chosen where the motion of a run settles, by hand and in a sampling run."""

import math

import pytest
import torch
from PIL import ImageColor
from toy_models import ToyDenoiser, make_contexts

from smra_core.evaluation.line_plot import Axes
from smra_core.evaluation.schedule_plot import MOTION_COLOR, SIGMA_COLOR, SIZE, SWITCH_COLOR
from smra_core.evaluation.switch_plot import draw_switch
from smra_core.lora.adapter import LoraPair, init_lora
from smra_core.lora.plan import SUBJECT
from smra_core.lora.schedule import ScheduledLora, Strengths, TPoint, scheduled
from smra_core.lora.settled_switch import SettledSwitch, describe_switch, find_motion, measure_motion_rate
from smra_core.wan.flow_matching import sampling_sigmas
from smra_core.wan.sampler import sample

LEVELS = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]


def make_video(*motions):
    """Latents `1 1 f 1 1` whose changes from latent to latent are these."""
    return torch.tensor([0.0, *motions]).cumsum(0).view(1, 1, -1, 1, 1) + 7


def test_motion_is_the_change_from_latent_to_latent():
    assert find_motion(make_video(1.0, -2.0)).flatten().tolist() == [1, -2]


def test_a_rate_is_the_relative_change_of_the_motion_per_noise_level():
    # From motion (0, 5) to (3, 4): the change is (3, -1), of length sqrt(10), over a motion of length 5.
    rate = measure_motion_rate(make_video(0.0, 5.0), make_video(3.0, 4.0), 0.2)
    assert rate == pytest.approx(math.sqrt(10) / 5 / 0.2)


def test_a_brighter_or_recolored_video_does_not_change_its_motion():
    before, now = make_video(1.0, 2.0), make_video(1.0, 2.0) + 3
    assert measure_motion_rate(before, now, 0.1) == 0


def test_a_batch_counts_by_its_mean_and_stillness_is_settled():
    still, moved, twice = make_video(0.0), make_video(1.0), make_video(2.0)
    assert measure_motion_rate(still, still, 0.1) == 0
    assert measure_motion_rate(moved, still, 0.1) == math.inf
    both = measure_motion_rate(torch.cat([moved, still]), torch.cat([twice, still]), 0.5)
    assert both == pytest.approx(0.5 / 0.5 / 2)


def observe(*motions, settled=1.0):
    """A switch that has seen one video after the other on the way down the levels."""
    switch = SettledSwitch(settled)
    for sigma, motion in zip(LEVELS, motions, strict=False):
        switch.record(sigma, make_video(motion))
    return switch


def test_the_switch_is_after_the_first_evaluation_whose_motion_has_settled():
    # Relative changes 0.5, 0.1, 0.5 over steps of 0.2: rates 2.5, 0.5, 2.5.
    switch = observe(1.0, 2.0, 2.0 / 0.9, 2.0 / 0.9 * 2)
    assert [sigma for sigma, _ in switch.rates] == LEVELS[1:4]
    assert [rate for _, rate in switch.rates] == pytest.approx([2.5, 0.5, 2.5])
    boundary = switch.find_boundary(LEVELS)
    assert [sigma > boundary for sigma in LEVELS[:-1]] == [True, True, True, False, False]
    assert describe_switch(switch, LEVELS).startswith("switch at step 3 of 5, sigma 0.400: the motion had")


def test_a_run_whose_motion_never_settles_has_one_late_step():
    switch = observe(1.0, 2.0, 4.0, 8.0, 16.0)
    boundary = switch.find_boundary(LEVELS)
    assert [sigma > boundary for sigma in LEVELS[:-1]] == [True, True, True, True, False]
    assert "never settled" in describe_switch(switch, LEVELS)


def test_a_part_of_a_run_that_does_not_reach_the_end_may_stay_early():
    assert observe(1.0, 2.0).find_boundary(LEVELS[:3]) == -1


def test_the_same_level_again_keeps_its_strength_and_measures_nothing():
    switch = SettledSwitch(100.0)
    for sigma in (1.0, 1.0, 0.8):
        switch.record(sigma, make_video(1.0))
    assert len(switch.rates) == 1 and switch.find_boundary(LEVELS) < 0.8


def test_of_several_evaluations_at_a_level_the_first_counts():
    switch = SettledSwitch()
    for sigma, motion in ((1.0, 1.0), (1.0, 9.0), (0.8, 2.0)):
        switch.record(sigma, make_video(motion))
    assert [rate for _, rate in switch.rates] == pytest.approx([(2 - 1) / 2 / 0.2])


def test_a_picture_is_refused():
    with pytest.raises(ValueError, match="5 frames"):
        SettledSwitch().record(1.0, torch.zeros(1, 16, 1, 4, 4))


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_run_with_a_switch_is_that_of_the_fixed_t_point_at_its_step(sampler):
    denoiser, (context, negative) = ToyDenoiser(1), make_contexts()
    generator = torch.Generator().manual_seed(7)
    lora = {
        name: LoraPair(pair.a.detach(), torch.randn(pair.b.shape, generator=generator))
        for name, pair in init_lora(denoiser.spec, SUBJECT, 2, generator).items()
    }
    loras, sigmas = [ScheduledLora(lora, Strengths(0.4, 0.8))], sampling_sigmas(5)
    start = torch.randn(1, 16, 3, 4, 4, generator=generator)

    def run(t_point, record=None):
        with scheduled(denoiser.linears(), loras, t_point, sigmas.tolist()) as set_strengths:
            return sample(
                denoiser, start, sigmas, context, negative, sampler=sampler, on_evaluation=set_strengths,
                on_prediction=record,
            )  # fmt: skip

    watched = SettledSwitch(0.0)
    run(watched, watched.record)
    switch = SettledSwitch(sorted(rate for _, rate in watched.rates)[1])
    made = run(switch, switch.record)
    boundary = switch.find_boundary(sigmas.tolist())
    first_late = next(sigma for sigma in sigmas.tolist() if sigma <= boundary)
    assert 0 < first_late < 1 and switch.switched_after is not None
    assert torch.equal(made, run(TPoint(first_late)))
    assert not torch.equal(made, run(TPoint(1.0)))


def draw_colors(switch):
    """Draw a switch; return a function of (step, rate) for the colors within a pixel of that point.

    The axis of the rate ends at four times the settled rate.
    """
    picture, axes = draw_switch(switch, LEVELS), Axes(SIZE, (0, 5), (0, 4 * switch.settled))

    def find_colors(step, rate):
        x, y = map(round, axes.find_pixel((step, rate)))
        return {color for _, color in picture.crop((x - 1, y - 1, x + 2, y + 2)).getcolors()}

    return find_colors


def test_the_picture_has_the_rates_the_settled_rate_and_the_switch_at_their_places():
    # As above: rates 2.5, 0.5 and 2.5 at steps 1 to 3, settled at 1, and late strengths from step 3 on.
    find_colors = draw_colors(observe(1.0, 2.0, 2.0 / 0.9, 2.0 / 0.9 * 2))
    for point in ((1, 2.5), (2, 0.5), (3, 2.5), (1.5, 1.5)):
        assert ImageColor.getrgb(MOTION_COLOR) in find_colors(*point)
    assert ImageColor.getrgb(SWITCH_COLOR) in find_colors(3, 3.5)
    for step in (0.5, 4.5):
        assert ImageColor.getrgb(SIGMA_COLOR) in find_colors(step, 1)


def test_a_rate_above_the_pictures_axis_lies_at_its_upper_end():
    # From 1 to 9 in a step of 0.2 is a rate of 4.4, above the axis' end at 4.
    assert ImageColor.getrgb(MOTION_COLOR) in draw_colors(observe(1.0, 9.0))(1, 4)
