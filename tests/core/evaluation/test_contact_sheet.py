import pytest
import torch
from PIL import Image, ImageFont

from smra_core.evaluation.contact_sheet import (
    GAP,
    INK,
    LABEL_WIDTH,
    LARGEST_SIDE,
    MARGIN,
    MOST_LINES,
    PAPER,
    SMALLEST_SIDE,
    SheetRow,
    _wrap_text,
    choose_indices,
    draw_sheet,
    stack_sheets,
    to_sheet_picture,
    write_contact_sheet,
)


def test_indices_are_spread_from_the_first_to_the_last_or_as_wanted():
    assert choose_indices(9, 3) == [0, 4, 8]
    assert choose_indices(2, 6) == [0, 1]
    assert choose_indices(9, [7, 2]) == [7, 2]


@pytest.mark.parametrize("wanted", [0, [], [9], [-1]])
def test_indices_beyond_the_clip_are_refused(wanted):
    with pytest.raises(ValueError, match="of 9; give a count above 0, or indices 0 to 8"):
        choose_indices(9, wanted)


def test_small_frames_grow_by_a_whole_factor_into_sharp_squares():
    frame = torch.zeros(3, 50, 100)
    frame[0, :, 0] = 1
    picture = to_sheet_picture(frame)
    assert picture.size == (200, 100) and picture.width >= SMALLEST_SIDE
    assert [picture.getpixel((x, 9)) for x in (0, 1, 2)] == [(255, 0, 0), (255, 0, 0), (0, 0, 0)]


def test_large_frames_shrink_to_the_largest_side():
    assert to_sheet_picture(torch.ones(3, 480, 832)).size == (LARGEST_SIDE, round(480 * LARGEST_SIDE / 832))


def test_pictures_stand_in_rows_and_columns():
    red, blue = (Image.new("RGB", (20, 40), color) for color in ("red", "blue"))
    sheet = draw_sheet([SheetRow("a", [red, blue]), SheetRow("b", [blue, red])], ["", ""], "")
    left, top = MARGIN + LABEL_WIDTH, MARGIN + GAP
    colors = [[sheet.getpixel((left + x, top + y)) for x in (0, 20 + GAP)] for y in (0, 40 + GAP)]
    assert colors == [[(255, 0, 0), (0, 0, 255)], [(0, 0, 255), (255, 0, 0)]]
    assert sheet.size == (left + 20 + GAP + 20 + MARGIN, top + 40 + GAP + 40 + MARGIN)


def test_text_is_wrapped_into_its_room_and_cut():
    font = ImageFont.load_default(20)
    lines = _wrap_text("word " * 100 + "w" * 100, 20, 120)
    assert len(lines) == MOST_LINES and lines[-1].text.endswith("...")
    assert all(font.getlength(line.text) <= 120 and line.color == INK for line in lines[:-1])
    assert [line.text for line in _wrap_text("one\ttwo", 20, 500)] == ["one two"]
    assert _wrap_text("", 20, 120) == []


def test_a_sheet_shows_the_chosen_frames_of_every_clip(tmp_path):
    clip = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 192, 192) / 5
    write_contact_sheet([("gray", clip)], tmp_path / "sheet.png", frames=[4, 1])
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    row, left = sheet.height - MARGIN - 96, MARGIN + LABEL_WIDTH
    assert sheet.getpixel((left + 96, row)) == (204,) * 3  # 4/5 of 255
    assert sheet.getpixel((left + 192 + GAP + 96, row)) == (51,) * 3


def test_a_contact_sheet_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_contact_sheet([], tmp_path / "sheet.png")


def test_stacked_sheets_stand_one_below_the_other_with_one_margin_between():
    colors = (10, 20, 30), (40, 50, 60)
    sheets = []
    for color, side in zip(colors, (300, 200), strict=True):
        sheet = Image.new("RGB", (side, side), PAPER)
        sheet.paste(color, (MARGIN, MARGIN, side - MARGIN, side - MARGIN))
        sheets.append(sheet)
    page = stack_sheets(sheets)
    assert page.size == (300, 500 - MARGIN)
    for y, color in (
        (MARGIN, colors[0]),
        (300 - MARGIN - 1, colors[0]),
        (300 - MARGIN, PAPER),
        (299, PAPER),
        (300, colors[1]),
        (page.height - MARGIN - 1, colors[1]),
        (page.height - MARGIN, PAPER),
    ):
        assert page.getpixel((MARGIN, y)) == color, y
