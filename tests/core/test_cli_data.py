"""The commands that train, on folders of several clips, with masks, at their own sizes."""

import numpy as np
import pytest
import torch
from PIL import Image

from smra_core.cli import main
from smra_core.data.video import write_video
from smra_core.lora.reader import load_lora

SIDE, FRAMES = 32, 5
SHORT = ("--steps", "1", "--accumulate", "1", "--rank", "2", "--width", str(SIDE), "--height", str(SIDE))


@pytest.fixture
def walk(tmp_path):
    """Two clips of one motion, one twice as wide as the other, and a mask of the wide one."""
    picture = torch.rand(3, SIDE, 2 * SIDE)
    clip = torch.stack([picture.roll(2 * number, -1) for number in range(FRAMES)])
    for name, frames in (("narrow", clip[..., :SIDE]), ("wide", clip)):
        (tmp_path / "walk").mkdir(exist_ok=True)
        write_video(tmp_path / "walk" / f"{name}.mp4", frames, 16)
        (tmp_path / "walk" / f"{name}.txt").write_text(f"a {name} shape is vvt sliding")
    mask = np.zeros((SIDE, 2 * SIDE), np.uint8)
    mask[:, :SIDE] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "wide.png")
    return tmp_path / "walk"


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def test_a_folder_of_clips_with_masks_is_trained_at_its_own_sizes(walk, capsys, caplog):
    caplog.set_level("INFO", "smrabooth")
    options = ("--frames", FRAMES, "--own-sizes", "--masks", walk.parent / "masks", "--mora-weight", 0)
    code, shown = run(capsys, "train-motion", walk, *options, *SHORT, "--out", walk.parent / "out")
    assert code == 0, shown.err
    captions = load_lora(shown.out.strip()).metadata.captions
    assert captions == ("a narrow shape is vvt sliding", "a wide shape is vvt sliding")
    for line in (
        "note: narrow.mp4: 5 frames of 32x32, 'a narrow shape is vvt sliding'",
        "note: wide.mp4: 5 frames of 32x16, 'a wide shape is vvt sliding'",
        "note: wide.mp4: its mask wide.png leaves out 50 % of the clip",
    ):
        assert line in caplog.messages


def test_a_mask_that_leaves_nothing_is_one_sentence(walk, capsys):
    Image.new("L", (2 * SIDE, SIDE), 255).save(walk.parent / "masks" / "wide.png")
    options = ("--frames", FRAMES, "--masks", walk.parent / "masks", "--mora-weight", 0)
    code, shown = run(capsys, "train-motion", walk, *options, *SHORT, "--out", walk.parent / "out")
    assert code == 1 and "error: The mask of wide.mp4 excludes all of the clip" in shown.err


def test_a_subject_may_be_a_clip_with_masks(walk, capsys, caplog):
    caplog.set_level("INFO", "smrabooth")
    (walk.parent / "masks").rename(walk / "masks")
    options = ("--clip-frames", FRAMES, "--sura-weight", 0, *SHORT, "--out", walk.parent / "out")
    code, shown = run(capsys, "train-subject", walk, *options)
    assert code == 0, shown.err
    assert load_lora(shown.out.strip()).metadata.captions == ("a wide shape is vvt sliding",)
    assert any("narrow.mp4: a clip without masks" in line for line in caplog.messages)
