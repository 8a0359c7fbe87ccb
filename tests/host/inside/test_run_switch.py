"""A run that finds its T_point by itself, against weights that are overwritten from that step on."""

import logging
import re

import pytest
import torch
from random_wan import STEPS, difference, leftovers, pack, reference, sample
from smrabooth_pack.nodes.patching import run_switch
from smrabooth_pack.nodes.patching.apply_loras import apply_loras
from smrabooth_pack.smra_core.lora.adapter import LoraPair
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule
from smrabooth_pack.smra_core.lora.settled_switch import SettledSwitch
from training_graph import defaults

EXACT = 2e-4
SETTLED = StrengthSchedule(0.7, when_settled=True)


def applied(model, loras):
    strengths = Strengths(0.4, 0.8), Strengths.from_value(1.0)
    scheduled = [
        ScheduledLora({name: LoraPair(a, b) for name, (a, b) in factors.items()}, one)
        for factors, one in zip(loras, strengths, strict=True)
    ]
    return apply_loras(model, scheduled, SETTLED).model


@pytest.fixture
def watched(monkeypatch):
    """Function that sets the rate at which a motion counts as settled; the list of the switches made."""
    made = []

    def settle_at(rate):
        def make():
            made.append(SettledSwitch(rate))
            return made[-1]

        monkeypatch.setattr(run_switch, "SettledSwitch", make)
        return made

    return settle_at


def find_rates(model, loras, watched):
    made = watched(0.0)
    sample(applied(model, loras))
    return next(switch.rates for switch in made if switch.rates)


@pytest.mark.parametrize("order", [2, 5])
def test_the_run_switches_where_its_motion_has_settled(model, loras, watched, caplog, order):
    rates = find_rates(model, loras, watched)
    wanted = sorted(rate for _, rate in rates)[order]
    step = next(step for step, (_, rate) in enumerate(rates, start=2) if rate <= wanted)
    watched(wanted)
    with caplog.at_level(logging.INFO, "smrabooth"):
        ours = sample(applied(model, loras))
    said = re.findall(rf"switch at step (\d+) of {STEPS}", caplog.text)
    assert said == [str(min(step, STEPS - 1))]
    late_below = 1 - (step - 0.5) / STEPS
    theirs = sample(reference(model, [(loras[0], 0.4, 0.8), (loras[1], 1.0, 1.0)], late_below))
    assert difference(ours, theirs) < EXACT and leftovers(model) == []


def test_a_second_run_begins_anew(model, loras, watched):
    wanted = sorted(rate for _, rate in find_rates(model, loras, watched))[2]
    watched(wanted)
    ours = applied(model, loras)
    assert torch.equal(sample(ours), sample(ours))


def test_the_negative_prompt_does_not_count():
    switch = run_switch.RunSwitch()
    levels, other = [1.0, 0.5, 0.0], torch.randn(1, 16, 2, 4, 4)
    for sigma in levels[:-1]:
        switch.find_boundary(sigma, levels)
        still = torch.ones(1, 16, 2, 4, 4)
        switch.record(sigma, torch.cat([other / sigma, still]), {"cond_or_uncond": [1, 0]})
    assert switch._switch.rates == [(0.5, 0.0)] and switch._switch.switched_after == 0.5


def test_the_scheduler_gives_out_a_schedule_that_settles_and_says_that_its_outputs_are_of_the_step(nodes):
    node = nodes["SMRATPointScheduler"]
    scheduler = pack("nodes.t_point_scheduler")
    given = defaults(node) | {"t_point": scheduler.SETTLED}
    schedule, step, report, *_ = node.execute(**given).args
    fixed, fixed_step, *_ = node.execute(**defaults(node)).args
    assert schedule.when_settled and not fixed.when_settled and step == fixed_step
    assert schedule.t_point == fixed.t_point and "during the run" in report
