import pytest

from smra_core.evaluation.schedule_plot import BOTTOM, LEFT, RIGHT, SIZE, TOP, schedule_picture
from smra_core.lora.schedule import Strengths, StrengthSchedule, TPoint

T_POINT = TPoint(0.7)
TENTHS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def test_the_picture_steps_up_at_the_switch():
    schedule = StrengthSchedule(0.7, subject=Strengths(0.2, 0.6))
    image = schedule_picture(schedule, T_POINT, TENTHS)
    assert image.size == SIZE

    def subject_heights(step):
        """Rows in which the subject's orange is seen over a step."""
        x = round(LEFT + (RIGHT - LEFT) * step / 10)
        reds = [y for y in range(TOP, BOTTOM) if image.getpixel((x, y)) == (0xC2, 0x41, 0x0C)]
        return sum(reds) / len(reds)

    def row(strength):
        return BOTTOM - (BOTTOM - TOP) * strength

    assert subject_heights(1.5) == pytest.approx(row(0.2), abs=2)
    assert subject_heights(4.5) == pytest.approx(row(0.6), abs=2)
