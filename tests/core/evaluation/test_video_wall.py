"""Video walls and sheets of a grid: each cell at its place."""

import torch

from smra_core.data.video import read_video, read_video_size
from smra_core.evaluation.contact_sheet import GAP, LABEL_WIDTH, MARGIN, SMALLEST_SIDE
from smra_core.evaluation.video_wall import arrange_cells, draw_frame, read_cell, write_video_wall

SIDE, FRAMES = 8, 3


def label(subject, motion, seed="1"):
    return {"seed": seed, "subject": subject, "motion": motion}


def paint(value, frames=FRAMES):
    return torch.full((frames, 3, SIDE, SIDE), value, dtype=torch.uint8)


def test_the_axis_with_the_most_values_goes_across_and_gaps_stay_empty():
    labels = [label("cat", "walk"), label("dog", "run"), label("cat", "jump"), label("dog", "walk")]
    assert arrange_cells(labels) == (
        ["cat", "dog"], ["walk", "run", "jump"], [[0, None, 2], [3, 1, None]]
    )  # fmt: skip


def test_numbers_bear_the_names_of_their_axes():
    labels = [{"strength": strength, "seed": seed} for strength in ("0", "-0.5", "dog") for seed in "12"]
    arrangement = arrange_cells(labels)
    assert arrangement.columns == ["strength 0", "strength -0.5", "dog"]
    assert arrangement.rows == ["seed 1", "seed 2"]


def test_one_cell_is_one_place():
    assert arrange_cells([label("cat", "walk")]) == ([""], [""], [[0]])


def test_every_cell_is_where_its_names_say():
    labels = [label("cat", "walk"), label("cat", "run"), label("dog", "walk"), label("dog", "run")]
    page = draw_frame(arrange_cells(labels), [paint(value) for value in (10, 60, 110, 160)], 0, "grid")
    step, left = SMALLEST_SIDE + GAP, MARGIN + LABEL_WIDTH + 5
    bottom = page.height - MARGIN - 5
    found = [[page.getpixel((left + step * x, bottom - step * (1 - y)))[0] for x in (0, 1)] for y in (0, 1)]
    assert found == [[10, 60], [110, 160]]


def test_a_wall_is_as_long_as_its_longest_cell_and_the_shorter_hold_their_end(tmp_path):
    labels = [label("cat", "walk"), label("cat", "run")]
    write_video_wall(labels, [paint(30, 2), paint(200, 5)], tmp_path / "wall.mp4", 8)
    size = read_video_size(tmp_path / "wall.mp4")
    wall = read_video(tmp_path / "wall.mp4", size, 9).frames
    assert len(wall) == 5 and not any(side % 2 for side in size)
    x, y = MARGIN + LABEL_WIDTH + 9, size[1] - MARGIN - 9
    assert abs(wall[4, 0, y, x] * 255 - 30) < 6


def test_a_cell_is_read_as_it_was_written(tmp_path):
    from smra_core.data.video import write_video

    write_video(tmp_path / "a.mp4", torch.full((FRAMES, 3, 16, 24), 0.5), 8)
    video = read_cell(tmp_path / "a.mp4")
    assert video.shape == (FRAMES, 3, 16, 24) and (video.float() - 127).abs().max() < 4
