import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from smra_core.data.subject_set import SubjectImage
from smra_core.data.video import read_video, write_video
from smra_core.evaluation.contact_sheet import LABEL_WIDTH, MARGIN
from smra_core.miniature import demo
from smra_core.miniature.demo import combine_captions, run_demo


@pytest.mark.parametrize("subject, motion, prompt", [
    ("A picture of sks dog", "a person is vvt walking", "a sks dog is vvt walking"),
    ("a picture of a sks dog", "a cat vvt jumping high", "a sks dog vvt jumping high"),
    ("my dog", "a person is vvt walking", "my dog, a person is vvt walking"),
])  # fmt: skip
def test_two_captions_make_one_prompt(subject, motion, prompt):
    assert combine_captions(subject, motion) == prompt


def test_the_contact_sheet_begins_with_the_pictures_of_the_subject():
    def make_picture(shade):
        pixels = torch.full((3, 64, 64), shade / 255)
        return SubjectImage(f"{shade}.png", Path(), pixels, None, "a picture of sks dog")

    sheet = demo.draw_subject([make_picture(shade) for shade in (10, 90, 170)], 2, "a sks dog vvt walking")
    places = (MARGIN + LABEL_WIDTH + 9, sheet.width - MARGIN - 9)
    shades = [sheet.getpixel((x, sheet.height - MARGIN - 9)) for x in places]
    assert shades == [(10,) * 3, (170,) * 3]  # the first and the last, as there is room for two


def test_the_subject_is_labeled_by_its_captions():
    images = [
        SubjectImage(f"{n}.png", Path(), torch.zeros(3, 8, 8), None, f"sks dog {n}") for n in (1, 1, 2, 3)
    ]
    assert demo.describe_subject(images[:2]) == "subject\nsks dog 1"
    assert demo.describe_subject(images) == "subject\nsks dog 1, and 2 more"


FRAMES = 5


@pytest.fixture
def short_demo(monkeypatch):
    """The whole demo with one step of everything and one video of each variant."""
    monkeypatch.setattr(demo, "SUBJECT_TRAINING", replace(demo.SUBJECT_TRAINING, steps=1, batch_size=1))
    monkeypatch.setattr(demo, "MOTION_TRAINING", replace(demo.MOTION_TRAINING, steps=1))
    monkeypatch.setattr(demo, "MOTION", replace(demo.MOTION, frames=FRAMES))
    monkeypatch.setattr(demo, "SAMPLING", replace(demo.SAMPLING, steps=2, frames=FRAMES))
    monkeypatch.setattr(demo, "BACKGROUNDS", ("navy",))


def test_the_demo_leaves_everything_it_promises(tmp_path, short_demo, monkeypatch):
    page = run_demo(tmp_path)
    for name in ("base", "all_layers", "sparse", "SMRABooth"):
        frames = read_video(tmp_path / f"{name}.mp4", (64, 64), demo.SAMPLING.frames).frames
        assert len(frames) == demo.SAMPLING.frames
    for name in ("subject", "motion"):
        assert (tmp_path / f"{name}_lora.safetensors").is_file()
        header, first = (tmp_path / f"{name}_losses.csv").read_text().splitlines()[:2]
        assert header.startswith("step,total,") and first.startswith("1,")
    for name in ("contact_sheet.png", "flow.png", "losses.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert name in page.read_text(encoding="utf-8")
    metrics = json.loads((tmp_path / "metrics.json").read_text())["variants"]
    assert list(metrics) == ["base", "all layers", "sparse", "SMRABooth"]
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/lora.safetensors")}
    monkeypatch.setattr(demo, "generate", lambda *args, **options: {})
    monkeypatch.setattr(demo, "write_results", lambda out, *rest: out / "report.html")
    assert run_demo(tmp_path) == page  # sampled again, and nothing is trained again
    assert runs == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/lora.safetensors")}


def write_clip(folder, frames):
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    write_video(folder / "clip.mp4", torch.stack([picture.roll(i, -1) for i in range(frames)]), 16)
    return folder / "clip.mp4"


def test_a_clip_that_is_shorter_than_the_demos_gives_videos_of_its_length(tmp_path, short_demo, monkeypatch):
    monkeypatch.setattr(demo, "SAMPLING", replace(demo.SAMPLING, frames=9))
    clip = write_clip(tmp_path, 5)
    page = run_demo(tmp_path / "out", motion=clip, motion_caption="a square vvt moving")
    assert page.is_file()
    about = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert about["sampling"]["frames"] == 5 and len(about["variants"]) == 4


def test_what_the_demo_cannot_use_is_refused_at_once_without_options_that_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="needs? at least 5|5 frames"):
        run_demo(tmp_path / "out", motion=write_clip(tmp_path, 4), motion_caption="vvt moving")
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "dog" / "a.png")
    with pytest.raises(ValueError, match=r"1 of 1 pictures have no mask, first a\.png\.") as error:
        run_demo(tmp_path / "out", subject=tmp_path / "dog", subject_caption="A picture of sks dog")
    assert "SAM" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used as a folder for results"):
        run_demo(tmp_path / "file")
    assert not (tmp_path / "out" / "runs").exists()
