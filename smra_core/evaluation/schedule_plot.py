"""A small picture of a schedule: strengths and noise level over the steps of a run."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..lora.schedule import Strengths, StrengthSchedule, TPoint, describe_run, switch_step
from .contact_sheet import FAINT_INK, INK, PAPER

SIZE = (640, 320)
LEFT, RIGHT, TOP, BOTTOM = 48, 612, 64, 284
SUBJECT_COLOR, MOTION_COLOR, SIGMA_COLOR, SWITCH_COLOR = "#c2410c", "#1d4ed8", "#b8bec6", "#15803d"
_FONT_SIZE = 15
_TICKS = 5

Point = tuple[float, float]


def schedule_picture(schedule: StrengthSchedule, t_point: TPoint, sigmas: Sequence[float]) -> Image.Image:
    """Draw the run over these noise levels: both LoRAs' strengths, sigma behind them, the switch as a line.

    Both share one axis from 0 to the largest strength, at least 1; negative strengths widen it downwards.
    """
    steps, early = len(sigmas) - 1, switch_step(t_point, sigmas)
    plot = _Plot(steps, schedule)
    plot.frame()
    plot.line(enumerate(sigmas), SIGMA_COLOR, 2)
    if 0 < early < steps:
        plot.line([(early, plot.low), (early, plot.high)], SWITCH_COLOR, 1)
    plot.line(_staircase(schedule.motion, early, steps), MOTION_COLOR, 3)
    plot.line(_staircase(schedule.subject, early, steps), SUBJECT_COLOR, 3)
    plot.write(LEFT, 8, describe_run(t_point, sigmas), INK)
    legend = ("subject strength", SUBJECT_COLOR), ("motion strength", MOTION_COLOR), ("sigma", FAINT_INK)
    for place, (text, color) in enumerate(legend):
        plot.write(LEFT + 150 * place, 34, text, color)
    return plot.image


def _staircase(strengths: Strengths, early: int, steps: int) -> list[Point]:
    return [(0, strengths.early), (early, strengths.early), (early, strengths.late), (steps, strengths.late)]


class _Plot:
    """Axes of a run: steps to the right, strengths and sigma upwards."""

    def __init__(self, steps: int, schedule: StrengthSchedule):
        values = [*vars(schedule.subject).values(), *vars(schedule.motion).values()]
        self.steps, self.low, self.high = steps, min(0.0, *values), max(1.0, *values)
        self.image = Image.new("RGB", SIZE, PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(_FONT_SIZE)

    def place(self, step: float, value: float) -> Point:
        x = LEFT + (RIGHT - LEFT) * step / self.steps
        return x, BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low)

    def line(self, points, color, width: int) -> None:
        self.draw.line([self.place(*point) for point in points], color, width, joint="curve")

    def write(self, x: float, y: float, text: str, color) -> None:
        self.draw.text((x, y), text, color, self.font)

    def frame(self) -> None:
        self.draw.rectangle((LEFT, TOP, RIGHT, BOTTOM), outline=FAINT_INK)
        for value in (self.low, self.high):
            self.write(10, self.place(0, value)[1] - _FONT_SIZE / 2, f"{value:.1f}", FAINT_INK)
        for step in sorted({round(self.steps * i / (_TICKS - 1)) for i in range(_TICKS)}):
            self.write(self.place(step, 0)[0] - 6, BOTTOM + 8, str(step), FAINT_INK)
