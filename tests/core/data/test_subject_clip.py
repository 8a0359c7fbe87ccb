import numpy as np
import pytest
import torch
from PIL import Image

from smra_core.data.subject_set import read_subject_set
from smra_core.data.video import Selection, write_video

SIDE = 32
SIZE = (SIDE, SIDE)
CAPTION = "A picture of sks dog"
CLIPS = Selection(9, fps=16.0)


def subject_mask(left):
    """The mask `H W` of a square of 16x16."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[8:24, left : left + 16] = 255
    return mask


@pytest.fixture
def folder(tmp_path):
    """One picture with its mask, and a clip with numbered masks, of which the fifth is empty."""
    home = tmp_path / "dog"
    (home / "masks" / "run").mkdir(parents=True)
    Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(home / "sit.png")
    Image.fromarray(subject_mask(8)).save(home / "masks" / "sit.png")
    write_video(home / "run.mp4", torch.rand(6, 3, SIDE, SIDE), 16)
    for number in range(6):
        mask = subject_mask(2 * number) * (number != 4)
        Image.fromarray(mask).save(home / "masks" / "run" / f"{number:03}.png")
    return home


def read(folder, **options):
    return read_subject_set(folder, SIZE, **{"caption": CAPTION, "clips": CLIPS, **options})


def test_a_clip_with_masks_is_part_of_the_set(folder):
    images, notes, (clip,) = read(folder)
    assert [image.name for image in images] == ["sit.png"] and clip.name == "run.mp4"
    assert clip.frames.shape == (5, 3, SIDE, SIDE) and clip.caption == CAPTION
    expected = torch.stack([torch.from_numpy(subject_mask(2 * number) // 255) for number in range(5)])
    expected[4] = 0
    assert torch.equal(clip.masks_px[:, 0], expected.float())
    assert f"run.mp4: 5 frames of 32x32, '{CAPTION}'" in notes
    assert "run.mp4: its masks run cover 20 % of it, and none of it in 1 frames" in notes
    assert not [note for note in notes if "not part of the set" in note or "not read" in note]


def test_without_being_asked_for_a_clip_is_no_part_of_the_set(folder):
    images, notes, clips = read(folder, clips=None)
    assert len(images) == 1 and clips == [] and "run.mp4: not part of the set" in notes


def test_clips_without_masks_are_left_out_and_told(folder):
    write_video(folder / "jump.mp4", torch.rand(5, 3, SIDE, SIDE), 16)
    _, notes, clips = read(folder)
    assert [clip.name for clip in clips] == ["run.mp4"]
    assert any(note.startswith("jump.mp4: a clip without masks, which is not part") for note in notes)


def test_a_mask_video_beside_the_clip_serves_as_well(folder):
    for file in (folder / "masks" / "run").iterdir():
        file.unlink()
    (folder / "masks" / "run").rmdir()
    masks = torch.zeros(6, 3, SIDE, SIDE)
    masks[:, :, 8:24, 8:24] = 1
    write_video(folder / "run_mask.mp4", masks, 16)
    Image.fromarray(subject_mask(0)).save(folder / "run.png")  # a picture of the same name is no mask
    images, _, (clip,) = read(folder, clips=CLIPS)
    assert torch.equal(clip.masks_px, masks[:5, :1]) and "run.png" in [image.name for image in images]


def test_a_set_may_be_clips_alone_and_a_table_may_name_them(folder):
    (folder / "sit.png").unlink()
    (folder / "masks" / "sit.png").unlink()
    images, _, clips = read(folder)
    assert images == [] and len(clips) == 1
    (folder / "metadata.csv").write_text("video,prompt\nrun.mp4,a sks dog runs\n")
    images, _, (clip,) = read(folder, caption=None)
    assert images == [] and clip.caption == "a sks dog runs" and clip.masks_px.any()
    write_video(folder / "jump.mp4", torch.rand(5, 3, SIDE, SIDE), 16)
    (folder / "metadata.csv").write_text("video,prompt\njump.mp4,a sks dog jumps\n")
    with pytest.raises(ValueError, match="jump.mp4 is a clip without masks.*masks/jump/"):
        read(folder)


def test_masks_that_show_no_subject_are_refused(folder):
    for number in range(6):
        Image.fromarray(subject_mask(0) * 0).save(folder / "masks" / "run" / f"{number:03}.png")
    with pytest.raises(ValueError, match="show no subject in the frames that are used of run.mp4"):
        read(folder)


def test_pictures_and_clips_keep_their_own_shape_when_asked(folder):
    Image.fromarray(np.full((SIDE, 2 * SIDE, 3), 90, np.uint8)).save(folder / "wide.png")
    images, notes, (clip,) = read(folder, own_multiple=16)
    assert [tuple(image.pixels.shape[1:]) for image in images] == [(32, 32), (16, 32)]
    assert clip.frames.shape[2:] == (32, 32) and not [note for note in notes if "cropped" in note]
