"""A plot of a strength schedule: strengths and noise level over the steps of a run."""

from collections.abc import Sequence

from PIL import Image

from ..lora.schedule import Strengths, StrengthSchedule, TPoint, describe_run, find_early_steps
from .line_plot import Axes, Line, Point, draw_line_plot, to_steps

SIZE = (640, 320)
"""(width, height) in pixels."""
SUBJECT_COLOR, MOTION_COLOR, SIGMA_COLOR, SWITCH_COLOR = "#c2410c", "#1d4ed8", "#a3abb5", "#15803d"
MOST_MARKERS = 60
"""Steps up to which each has a dot on the line of sigma; with more, the dots would run into each other."""


def draw_schedule(schedule: StrengthSchedule, t_point: TPoint, sigmas: Sequence[float]) -> Image.Image:
    """Draw the run over these noise levels: both LoRAs' strengths, sigma, and each switch as a vertical line.

    A run whose levels do not fall may switch more than once. All lines share one axis from 0 to the largest
    strength, at least 1; negative strengths widen it downwards.
    """
    is_early = find_early_steps(t_point, sigmas)
    steps = len(is_early)
    axes = choose_axes(schedule, steps, describe_run(t_point, sigmas))
    sigma_line = Line(list(enumerate(sigmas)), SIGMA_COLOR, 1.5, "sigma", markers=steps <= MOST_MARKERS)
    changes = [step for step in range(1, steps) if is_early[step] != is_early[step - 1]]
    switches = [
        Line([(step, bound) for bound in axes.y], SWITCH_COLOR, 1.5, "" if number else "switch")
        for number, step in enumerate(changes)
    ]
    motion = Line(_list_corners(schedule.motion, is_early), MOTION_COLOR, 3, "motion strength")
    subject = Line(_list_corners(schedule.subject, is_early), SUBJECT_COLOR, 3, "subject strength")
    return draw_line_plot([sigma_line, *switches, motion, subject], axes)


def choose_axes(schedule: StrengthSchedule, steps: int, title: str = "") -> Axes:
    """Return axes for a run of some steps that show all strengths and sigma."""
    strengths = [*vars(schedule.subject).values(), *vars(schedule.motion).values()]
    label = "step: high-noise expert, then low-noise expert" if schedule.at_hand_over else "step"
    return Axes(SIZE, (0, steps), (min(0.0, *strengths), max(1.0, *strengths)), title, label)


def _list_corners(strengths: Strengths, is_early: Sequence[bool]) -> list[Point]:
    values = [strengths.early if early else strengths.late for early in is_early]
    return to_steps([*enumerate(values), (len(values), values[-1])])
