"""The report page of a grid: whole in one file, with intervals, and deaf to hostile names."""

import json
import math
import re
import statistics

import pytest

from smra_core.evaluation import grid_page
from smra_core.evaluation.grid_page import GridCell, choose_quantile, find_interval, write_grid_page

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> ${title} $title \u2028 'x\""
VIDEO = b"\0\0\0\x18ftypmp42 a video"


@pytest.fixture
def cell(tmp_path):
    def make(number, seed, metrics=None, subject="cat", prompt="a cat"):
        video = tmp_path / f"{number}.mp4"
        video.write_bytes(VIDEO)
        labels = {"prompt": prompt, "seed": str(seed), "subject": subject}
        return GridCell(labels, video, prompt, metrics or {})

    return make


def read_data(path):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"))
    return json.loads(text)


def test_the_interval_is_that_of_students_t():
    values = [1.0, 2.0, 4.0]
    half = 4.303 * statistics.stdev(values) / math.sqrt(3)
    mean = 7 / 3
    assert find_interval(values) == pytest.approx((mean, mean - half, mean + half))
    assert find_interval([5.0]) == (5.0, None, None)


@pytest.mark.parametrize("freedom, exact", [(1, 12.706), (10, 2.228), (12, 2.179), (29, 2.045), (500, 1.965)])
def test_the_quantile_is_never_narrower_than_the_exact_one(freedom, exact):
    assert exact <= choose_quantile(freedom) <= 1.045 * exact


def test_a_row_holds_the_mean_over_seeds_and_prompts(cell, tmp_path):
    cells = [cell(1, 1, {"DINO-I": 0.2}), cell(2, 2, {"DINO-I": 0.4}), cell(3, 1, {"DINO-I": 1.0}, "dog")]
    write_grid_page(tmp_path / "report.html", "Grid", cells)
    rows = read_data(tmp_path / "report.html")["rows"]
    assert [(row["labels"], row["count"]) for row in rows] == [
        ({"subject": "cat"}, 2),
        ({"subject": "dog"}, 1),
    ]
    assert rows[0]["metrics"]["DINO-I"][0] == pytest.approx(0.3)
    assert rows[1]["metrics"]["DINO-I"] == [1.0, None, None]


def test_values_that_are_not_finite_are_left_out(cell, tmp_path):
    write_grid_page(tmp_path / "report.html", "Grid", [cell(1, 1, {"a": math.nan}), cell(2, 2, {"a": 1.0})])
    assert read_data(tmp_path / "report.html")["rows"][0]["metrics"] == {"a": [1.0, None, None]}


def test_nothing_of_a_hostile_name_is_markup(cell, tmp_path):
    path = tmp_path / "report.html"
    write_grid_page(
        path, HOSTILE, [cell(1, 1, subject=HOSTILE, prompt=HOSTILE), cell(2, 2)], introduction=[HOSTILE]
    )
    text = path.read_text("utf-8")
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "<img" not in text
    assert "<!--" not in text
    data = read_data(path)
    assert data["title"] == data["cells"][0]["labels"]["subject"] == data["introduction"][0] == HOSTILE


def test_the_page_holds_its_videos_and_asks_the_network_for_nothing(cell, tmp_path):
    write_grid_page(tmp_path / "report.html", "Grid", [cell(1, 1)])
    (shown,) = read_data(tmp_path / "report.html")["cells"]
    assert shown["video"].startswith("data:video/mp4;base64,")
    assert not re.findall(
        r"https?://(?!www\.w3\.org/2000/svg)", (tmp_path / "report.html").read_text("utf-8")
    )


def test_a_large_grid_refers_to_the_files_beside_it_and_says_so(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(grid_page, "MOST_EMBEDDED", len(VIDEO) - 1)
    write_grid_page(tmp_path / "report.html", "Grid", [cell("a b", 1)])
    data = read_data(tmp_path / "report.html")
    assert data["cells"][0]["video"] == "a%20b.mp4" and "beside this page" in data["introduction"][-1]


def test_a_page_without_cells_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one cell"):
        write_grid_page(tmp_path / "report.html", "Grid", [])
