import json

import numpy as np
import pytest
import torch
from PIL import Image

from smra_core.data.clip_masks import find_clip_mask
from smra_core.data.crop import keep_shape
from smra_core.data.motion_set import read_motion_set
from smra_core.data.video import Selection, write_video

SIDE, WIDE = 32, 64
SIZE = (SIDE, SIDE)
CAPTION = "a person is vvt walking"


def write_clip(path, frames=9, width=SIDE, height=SIDE, fps=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (32 + 4 * torch.arange(frames)) / 255
    write_video(path, levels[:, None, None, None].expand(frames, 3, height, width), fps)


def write_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(255 * np.asarray(pixels))).save(path)


def left_half(width=SIDE):
    pixels = np.zeros((SIDE, width))
    pixels[:, : width // 2] = 1
    return pixels


@pytest.fixture
def folder(tmp_path):
    """A folder of two clips with captions in text files beside them."""
    home = tmp_path / "walking"
    for name, words in (("a", CAPTION), ("b", "a dog is vvt walking")):
        write_clip(home / f"{name}.mp4")
        (home / f"{name}.txt").write_text(words)
    return home


def read(path, frames=9, size=SIZE, fps=16.0, start=0, stride=1, **options):
    return read_motion_set(path, size, Selection(frames, start, stride, fps), **options)


def test_a_folder_of_clips_is_one_motion_and_each_clip_is_told(folder):
    clips, notes = read(folder)
    assert [(clip.name, clip.caption) for clip in clips] == [
        ("a.mp4", CAPTION),
        ("b.mp4", "a dog is vvt walking"),
    ]
    assert all(clip.frames.shape == (9, 3, SIDE, SIDE) and clip.exclude_px is None for clip in clips)
    assert notes[0] == f"a.mp4: 9 frames of 32x32, '{CAPTION}'"
    assert notes[2] == "b.mp4: 9 frames of 32x32, 'a dog is vvt walking'"
    assert {clip.caption for clip in read(folder, caption="mine").clips} == {"mine"}


def test_files_that_are_no_clips_of_the_set_are_told(folder):
    write_picture(folder / "cover.png", left_half())
    assert read(folder).notes[-1] == "cover.png: not part of the set"
    (folder / "metadata.csv").write_text(f"video,prompt\nb.mp4,{CAPTION}\n")
    assert read(folder).notes[-2:] == ["a.mp4: not part of the set", "cover.png: not part of the set"]
    assert not [note for note in read(folder / "a.mp4").notes if "not part" in note]


def test_every_row_of_a_table_is_a_clip_and_a_clip_may_have_several_captions(folder):
    (folder / "metadata.csv").write_text(f"video,prompt\nwalking/b.mp4,one\nb.mp4,two\na.mp4,{CAPTION}\n")
    clips, _ = read(folder)
    assert [(clip.name, clip.caption) for clip in clips] == [
        ("b.mp4", "one"),
        ("b.mp4", "two"),
        ("a.mp4", CAPTION),
    ]


def test_a_jsonl_table_is_read_as_a_csv_is(folder):
    rows = [{"file_name": "b.mp4", "text": "one", "frames": 9}, {"video": "a.mp4", "prompt": "two"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    for given in (folder, folder / "metadata.jsonl"):
        assert [(clip.name, clip.caption) for clip in read(given).clips] == [
            ("b.mp4", "one"),
            ("a.mp4", "two"),
        ]


@pytest.mark.parametrize("text, message", [
    ("[" * 100_000, "line 1 is no JSON"), ('{"video": "a.mp4"', "line 1 is no JSON"), 
    ("[1]", "line 1 has no text"),    ('{"video": 3}', "line 1 has no text under"), ("\n", "has no lines"),
    ('{"video": "../walking2/a.mp4"}', "leads out of"), ('{"video": "/etc/passwd"}', "absolute path"),
    ('{"video": "c.mp4"}', "there is no such file"), ("caf\xe9", "not UTF-8"),
])  # fmt: skip
def test_hostile_jsonl_tables_are_refused_by_line(folder, text, message):
    write_clip(folder.parent / "walking2" / "a.mp4")
    (folder / "metadata.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_clips_that_cannot_be_used_are_skipped_with_the_reason(folder):
    write_clip(folder / "c.mp4", frames=4)
    (folder / "d.mp4").write_bytes(b"no video")
    for name in "cd":
        (folder / f"{name}.txt").write_text(CAPTION)
    clips, notes = read(folder)
    assert [clip.name for clip in clips] == ["a.mp4", "b.mp4"]
    skipped = [note for note in notes if "skipped" in note]
    assert "c.mp4 is skipped" in skipped[0] and "gives 4 frames" in skipped[0]
    assert "d.mp4 is skipped" in skipped[1] and "cannot be read as a video" in skipped[1]
    for name in "ab":
        (folder / f"{name}.mp4").unlink()
    with pytest.raises(ValueError, match="gives 4 frames"):
        read(folder)


def test_a_clip_without_a_caption_is_refused_before_any_is_read(folder):
    (folder / "b.txt").unlink()
    with pytest.raises(ValueError, match="b.mp4 has no caption"):
        read(folder)


def test_clips_keep_their_own_shape_and_length_when_asked(folder):
    write_clip(folder / "b.mp4", frames=6, width=WIDE)
    cropped, notes = read(folder)
    assert [tuple(clip.frames.shape) for clip in cropped] == [(9, 3, 32, 32), (5, 3, 32, 32)]
    assert "b.mp4: 64x32 is cropped to its central 32x32" in notes
    own, notes = read(folder, own_multiple=16)
    assert [tuple(clip.frames.shape) for clip in own] == [(9, 3, 32, 32), (5, 3, 16, 32)]
    assert not [note for note in notes if "cropped" in note]
    large, _ = read(folder, size=(WIDE, SIDE), own_multiple=16)
    assert [tuple(clip.frames.shape[2:]) for clip in large] == [(32, 32), (32, 64)]


@pytest.mark.parametrize("source, most, multiple, expected", [
    ((1920, 1080), (576, 320), 16, (560, 320)), ((1080, 1920), (576, 320), 16, (320, 560)),
    ((320, 240), (576, 320), 16, (320, 240)), ((512, 512), (512, 512), 32, (512, 512)),
    ((10, 300), (64, 64), 16, (16, 288)),
])  # fmt: skip
def test_an_own_size_has_the_sources_shape_and_at_most_the_pixels_asked_for(source, most, multiple, expected):
    assert keep_shape(source, most, multiple) == expected


def test_a_mask_video_leaves_out_its_white_part_frame_by_frame(folder, tmp_path):
    masks = torch.zeros(9, 3, SIDE, SIDE)
    masks[4:, :, :, : SIDE // 2] = 1
    (tmp_path / "masks").mkdir()
    write_video(tmp_path / "masks" / "a.mp4", masks, 16)
    (first, second), notes = read(folder, masks=tmp_path / "masks")
    assert torch.equal(first.exclude_px, masks[:, :1]) and second.exclude_px is None
    assert "a.mp4: its mask a.mp4 leaves out 28 % of the clip" in notes
    assert any("b.mp4: it has no mask in" in note for note in notes)


def test_mask_pictures_have_the_numbers_of_the_clips_own_frames(tmp_path):
    write_clip(tmp_path / "fast.mp4", frames=40, fps=60)  # frames 0, 4, 7, 11, 15 are read
    for number in range(40):
        write_picture(tmp_path / "masks" / "fast" / f"{number:03}.png", left_half() * (number in (4, 15)))
    ((clip,), _) = read(tmp_path / "fast.mp4", 5, caption=CAPTION, masks=tmp_path / "masks")
    assert clip.exclude_px.mean((1, 2, 3)).tolist() == [0, 0.5, 0, 0, 0.5]
    for number in range(5, 40):
        (tmp_path / "masks" / "fast" / f"{number:03}.png").unlink()
    ((clip,), notes) = read(tmp_path / "fast.mp4", 5, caption=CAPTION, masks=tmp_path / "masks" / "fast")
    assert clip.exclude_px.mean((1, 2, 3)).tolist() == [0, 0, 0, 0, 0.5]
    assert any("belong to the 5 used ones" in note for note in notes)
    (tmp_path / "masks" / "fast" / "004.png").unlink()
    with pytest.raises(ValueError, match="has 4 frames, and frames 0 to 15 of fast.mp4 are used"):
        read(tmp_path / "fast.mp4", 5, caption=CAPTION, masks=tmp_path / "masks" / "fast")


def test_one_picture_is_the_mask_of_all_frames_of_all_clips(folder, tmp_path):
    write_picture(tmp_path / "logo.png", left_half())
    clips, notes = read(folder, masks=tmp_path / "logo.png")
    assert all(torch.equal(clip.exclude_px[8, 0], torch.tensor(left_half()).float()) for clip in clips)
    assert "b.mp4: logo.png is the mask of all frames" in notes


def test_masks_of_another_shape_and_masks_that_are_not_there_are_refused(folder, tmp_path):
    write_picture(tmp_path / "logo.png", left_half(WIDE))
    with pytest.raises(ValueError, match="logo.png is 64x32, its clip a.mp4 is 32x32"):
        read(folder, masks=tmp_path / "logo.png")
    with pytest.raises(ValueError, match="nowhere do not exist"):
        read(folder, masks=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no mask of these clips.*called as a, b"):
        read(folder, masks=tmp_path / "empty")


def test_a_folder_without_numbered_masks_is_refused(folder, tmp_path):
    write_picture(tmp_path / "masks" / "a" / "0.png", left_half())
    with pytest.raises(ValueError, match="a holds no numbered pictures"):
        read(folder, masks=tmp_path / "masks")


def test_a_mask_that_leads_outside_is_refused(folder, tmp_path):
    write_picture(tmp_path / "secret.png", left_half())
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="a.png leads out of"):
        find_clip_mask(tmp_path / "masks", folder / "a.mp4")
