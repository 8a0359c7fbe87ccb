import json
from dataclasses import replace

import pytest

from smra_core.data.video import read_video
from smra_core.miniature import demo
from smra_core.miniature.demo import combine_captions, run_demo


@pytest.mark.parametrize("subject, motion, prompt", [
    ("A picture of sks dog", "a person is vvt walking", "a sks dog is vvt walking"),
    ("a picture of a sks dog", "a cat vvt jumping high", "a sks dog vvt jumping high"),
    ("my dog", "a person is vvt walking", "my dog, a person is vvt walking"),
])  # fmt: skip
def test_two_captions_make_one_prompt(subject, motion, prompt):
    assert combine_captions(subject, motion) == prompt


FRAMES = 5


@pytest.fixture
def short_demo(monkeypatch):
    """The whole demo with one step of everything and one video of each variant."""
    monkeypatch.setattr(demo, "SUBJECT_TRAINING", replace(demo.SUBJECT_TRAINING, steps=1, batch_size=1))
    monkeypatch.setattr(demo, "MOTION_TRAINING", replace(demo.MOTION_TRAINING, steps=1))
    monkeypatch.setattr(demo, "MOTION", replace(demo.MOTION, frames=FRAMES))
    monkeypatch.setattr(demo, "SAMPLING", replace(demo.SAMPLING, steps=2, frames=FRAMES))
    monkeypatch.setattr(demo, "BACKGROUNDS", ("navy",))


def test_the_demo_leaves_everything_it_promises(tmp_path, short_demo):
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
    run_demo(tmp_path)
    assert runs == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/lora.safetensors")}
