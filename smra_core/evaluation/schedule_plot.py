"""A plot of a strength schedule: strengths and noise level over the steps of a run."""

from collections.abc import Sequence

from PIL import Image

from ..lora.schedule import Strengths, StrengthSchedule, TPoint, count_early_steps, describe_run
from .line_plot import Axes, Line, Point, draw_line_plot, to_steps

SIZE = (640, 320)
"""(width, height) in pixels."""
SUBJECT_COLOR, MOTION_COLOR, SIGMA_COLOR, SWITCH_COLOR = "#c2410c", "#1d4ed8", "#a3abb5", "#15803d"
MOST_MARKERS = 60
"""Steps up to which each has a dot on the line of sigma; with more, the dots would run into each other."""


def draw_schedule(schedule: StrengthSchedule, t_point: TPoint, sigmas: Sequence[float]) -> Image.Image:
    """Draw the run over these noise levels: both LoRAs' strengths, sigma, and the switch as a vertical line.

    All share one axis from 0 to the largest strength, at least 1; negative strengths widen it downwards.
    """
    steps, early = len(sigmas) - 1, count_early_steps(t_point, sigmas)
    axes = choose_axes(schedule, steps, describe_run(t_point, sigmas))
    sigma_line = Line(list(enumerate(sigmas)), SIGMA_COLOR, 1.5, "sigma", markers=steps <= MOST_MARKERS)
    switch = Line([(early, bound) for bound in axes.y], SWITCH_COLOR, 1.5, "switch")
    motion = Line(_list_corners(schedule.motion, early, steps), MOTION_COLOR, 3, "motion strength")
    subject = Line(_list_corners(schedule.subject, early, steps), SUBJECT_COLOR, 3, "subject strength")
    switches = [switch] if 0 < early < steps else []
    return draw_line_plot([sigma_line, *switches, motion, subject], axes)


def choose_axes(schedule: StrengthSchedule, steps: int, title: str = "") -> Axes:
    """Return axes for a run of some steps that show all strengths and sigma."""
    strengths = [*vars(schedule.subject).values(), *vars(schedule.motion).values()]
    return Axes(SIZE, (0, steps), (min(0.0, *strengths), max(1.0, *strengths)), title, "step")


def _list_corners(strengths: Strengths, early: int, steps: int) -> list[Point]:
    return to_steps([(0, strengths.early), (early, strengths.late), (steps, strengths.late)])
