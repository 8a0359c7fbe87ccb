import pytest
from PIL import Image

from smra_core.evaluation.loss_plot import (
    BAND_COLORS,
    PANEL_SIZE,
    SMOOTH_COLOR,
    draw_loss_panel,
    draw_losses,
    join_panels,
    make_loss_rows,
    smooth,
)


def test_smoothing_forgets_and_starts_with_the_first_value():
    # Weights of the past by 0.5: (4), (0.5 * 4 + 1 * 1) / 1.5 and (0.25 * 4 + 0.5 * 1 + 1 * 8) / 1.75.
    assert smooth([4, 1, 8], 0.5) == pytest.approx([4, 2, 9.5 / 1.75])
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([]) == []


def test_a_falling_loss_falls_in_its_panel():
    panel = draw_loss_panel("denoise", [1, 2, 3], [3.0, 2.0, 1.0], (300, 200))
    color = tuple(bytes.fromhex(SMOOTH_COLOR[1:]))
    places = [(x, y) for x in range(300) for y in range(60, 200) if panel.getpixel((x, y)) == color]
    (left, first), (right, last) = min(places), max(places)
    assert left < 100 and right > 200 and last > first + 30  # rows are counted from the top


def test_panels_are_joined_in_rows_and_short_rows_end_white():
    red, blue = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (4, 3), "blue")
    joined = join_panels([[red, blue], [blue]])
    assert joined.size == (8, 6)
    assert [joined.getpixel(at) for at in ((0, 0), (4, 2), (3, 3), (4, 3))] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 0, 255),
        (255, 255, 255),
    ]


def test_a_file_has_a_row_per_run_and_a_panel_per_named_loss(tmp_path):
    subject, motion = tmp_path / "subject.csv", tmp_path / "motion.csv"
    subject.write_text("step,total,denoise\n1,3,3\n2,2,2\n")
    motion.write_text("step,total,region,flow\n1,5,4,1\n2,3,2,1\n")
    draw_losses({"subject": subject, "motion": motion}, tmp_path / "losses.png")
    picture = Image.open(tmp_path / "losses.png")
    assert picture.size == (2 * PANEL_SIZE[0], 2 * PANEL_SIZE[1])
    unused = picture.convert("RGB").crop((PANEL_SIZE[0], 0, 2 * PANEL_SIZE[0], PANEL_SIZE[1]))
    assert unused.getextrema() == ((255, 255),) * 3


def test_bands_of_noise_have_a_row_of_their_own_and_a_line_each():
    nan = float("nan")
    columns = {"step": [1.0, 2.0, 3.0], "total": [3.0] * 3, "region": [3.0, 2.0, 1.0]}
    assert [len(row) for row in make_loss_rows(columns, (300, 200))] == [1]
    bands = {"region at sigma 0 to 0.333": [nan, 1.0, 2.0], "region at sigma 0.333 to 0.667": [nan] * 3}
    last = {"region at sigma 0.667 to 1": [3.0, nan, nan]}
    rows = make_loss_rows(columns | bands | last, (300, 200))
    assert [len(row) for row in rows] == [1, 1]
    drawn = {color for _, color in rows[1][0].convert("RGB").getcolors(100_000)}
    low, middle, high = (tuple(bytes.fromhex(color[1:])) for color in BAND_COLORS)
    assert low in drawn and high in drawn and middle not in drawn


def test_a_run_without_a_step_is_drawn_empty():
    assert len(make_loss_rows({"step": [], "total": []}, (300, 200))) == 1
