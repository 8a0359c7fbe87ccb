"""A plot of how a run chose its T_point: the rate of the motion over the steps, and the switch."""

from collections.abc import Sequence

from PIL import Image

from ..lora.settled_switch import SettledSwitch, describe_switch
from .line_plot import Axes, Line, draw_line_plot
from .schedule_plot import MOTION_COLOR, SIGMA_COLOR, SIZE, SWITCH_COLOR


def draw_switch(switch: SettledSwitch, sigmas: Sequence[float]) -> Image.Image:
    """Draw the rate at each step of a finished run over these noise levels, where it counts as settled, and
    the switch.

    The axis is cut at four times the settled rate, above which the first steps may lie.
    """
    levels = [float(sigma) for sigma in sigmas]
    steps, top = len(levels) - 1, 4 * switch.settled
    numbers = {sigma: step for step, sigma in enumerate(levels)}
    rates = [(numbers[sigma], min(rate, top)) for sigma, rate in switch.rates if sigma in numbers]
    early = sum(sigma > switch.find_boundary(levels) for sigma in levels[:-1])
    lines = [
        Line([(0, switch.settled), (steps, switch.settled)], SIGMA_COLOR, 1.5, "settled"),
        Line([(early, 0), (early, top)], SWITCH_COLOR, 1.5, "switch"),
        Line(rates, MOTION_COLOR, 3, "rate of the motion", markers=True),
    ]
    axes = Axes(SIZE, (0, steps), (0, top), describe_switch(switch, levels), "step")
    return draw_line_plot([line for line in lines if line.points], axes)
