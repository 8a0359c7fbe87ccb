import pytest

from smra_core.evaluation.schedule_plot import BOTTOM, LEFT, RIGHT, SIZE, TOP, schedule_picture
from smra_core.lora.plan import Strengths, TPointSchedule
from smra_core.lora.schedule import SparseSchedule, describe_run, switch_step
from smra_core.wan.flow_matching import sampling_sigmas

T_POINT = TPointSchedule(0.7)
TENTHS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def test_the_papers_run_switches_at_step_15_of_50():
    levels = sampling_sigmas(50).tolist()
    assert switch_step(T_POINT, levels) == 15
    assert describe_run(T_POINT, levels) == "switch at step 15 of 50, sigma 0.700 (T_point at sigma 0.70)"


def test_a_part_of_a_run_on_one_side_says_why_it_does_not_switch():
    assert switch_step(T_POINT, TENTHS[:4]) == 3
    assert switch_step(T_POINT, [1.0, 0.95, 0.875]) == 2
    assert "early strengths throughout: the end at sigma 0.875 lies above" in describe_run(
        T_POINT, [1.0, 0.95, 0.875]
    )
    assert switch_step(T_POINT, [0.6, 0.3, 0.0]) == 0
    assert "late strengths throughout: the start at sigma 0.600" in describe_run(T_POINT, [0.6, 0.3, 0.0])


def test_a_share_is_read_off_the_samplers_own_table():
    schedule = SparseSchedule(0.3, as_share=True)
    assert schedule.resolve(lambda share: 1 - share).sigma == pytest.approx(0.7)
    assert schedule.resolve(lambda share: 8 * (1 - share) / (1 + 7 * (1 - share))).sigma == pytest.approx(
        5.6 / 5.9
    )
    assert SparseSchedule(0.3).resolve(lambda share: 1 - share).sigma == 0.3


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_t_point_outside_the_run_is_refused(value):
    with pytest.raises(ValueError, match="from 0 to 1"):
        SparseSchedule(value)


def test_the_picture_steps_up_at_the_switch():
    schedule = SparseSchedule(0.7, subject=Strengths(0.2, 0.6))
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
