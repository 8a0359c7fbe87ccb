import numpy as np
import pytest
import torch
from PIL import Image

from smra_core.data.motion_clip import read_motion_clip
from smra_core.data.picture_sequence import find_sequence, is_animation, read_sequence
from smra_core.data.video import Selection, write_video

SIDE = 32
SIZE = (SIDE, SIDE)
STEP = 20
"""Brightness that each frame has more than the one before, of 255."""


def gray(number, size=SIZE):
    return Image.fromarray(np.full((*size[::-1], 3), 10 + STEP * number, np.uint8))


def animate(path, durations, count=9, **options):
    first, *others = [gray(number) for number in range(count)]
    first.save(path, save_all=True, append_images=others, duration=durations, **options)
    return path


def number_pictures(folder, numbers, name="{:04d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(numbers):
        gray(place).save(folder / name.format(number))
    return folder


def read(path, **options):
    return read_motion_clip(path, SIZE, **{"frames": 9, "caption": "a ball is vvt rolling", **options})


def numbers(clip):
    return [round((frame.mean().item() * 255 - 10) / STEP) for frame in clip.frames]


@pytest.mark.parametrize("name, options", [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})])
def test_animated_pictures_are_clips(tmp_path, name, options):
    clip = read(animate(tmp_path / name, 60, **options))
    assert numbers(clip) == list(range(9)) and clip.name == "a"
    assert clip.notes == [f"{name}: 16.67 fps clip: frames are taken one by one"]


@pytest.mark.parametrize("name, options", [("a.gif", {}), ("a.webp", {"lossless": True})])
def test_animations_are_read_by_their_durations(tmp_path, name, options):
    fast = animate(tmp_path / name, 30, count=12, **options)
    clip = read(fast, frames=5)
    assert numbers(clip) == [0, 2, 4, 6, 8] and clip.fps == 16  # at 0, 62.5, 125, 187.5, 250 ms
    uneven = read(animate(tmp_path / name, [30, 30, 120, 60, 60, 60, 60, 60, 60], **options), frames=5)
    assert numbers(uneven) == [0, 2, 3, 3, 4]  # frames begin at 0, 30, 60, 180, 240 ms
    assert any("variable frame rate" in note for note in uneven.notes)
    assert f"{name}: repeated frames, where the clip stands still: 1" in uneven.notes


def test_durations_of_zero_count_as_in_browsers(tmp_path):
    clip = read(animate(tmp_path / "a.gif", 0))
    assert numbers(clip) == list(range(9)) and clip.fps == 10
    assert "a.gif: durations below 20 ms count as 100 ms" in clip.notes


def test_transparent_parts_of_an_animation_are_white(tmp_path):
    frames = [Image.new("RGBA", SIZE, (0, 0, 0, 0)) for _ in range(5)]
    for number, frame in enumerate(frames):
        frame.paste((200, 0, 0, 255), (number, 0, number + 8, SIDE))
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=60, lossless=True)
    clip = read(tmp_path / "a.webp", frames=5)
    assert (clip.frames[:, :, :, 20:] == 1).all() and clip.frames[0, 0, 0, 0] == pytest.approx(200 / 255)
    assert "a.webp: its transparent parts lie over white" in clip.notes


def test_a_file_is_known_by_its_content_and_not_by_its_ending(tmp_path):
    animate(tmp_path / "a.gif", 60).rename(tmp_path / "gif.mp4")
    assert numbers(read(tmp_path / "gif.mp4")) == list(range(9))
    levels = (10 + STEP * torch.arange(9)) / 255
    write_video(tmp_path / "b.mp4", levels[:, None, None, None].expand(9, 3, SIDE, SIDE), 16)
    (tmp_path / "b.mp4").rename(tmp_path / "video.gif")
    assert numbers(read(tmp_path / "video.gif")) == list(range(9))
    gray(0).save(tmp_path / "still.webp")
    assert not is_animation(tmp_path / "still.webp") and not is_animation(tmp_path)


def test_a_damaged_animation_is_named(tmp_path):
    whole = animate(tmp_path / "a.gif", 60).read_bytes()
    (tmp_path / "a.gif").write_bytes(whole[:60])
    with pytest.raises(ValueError, match="a.gif cannot be read as an animation"):
        read(tmp_path / "a.gif")


def test_numbered_pictures_have_the_rate_of_the_models_videos(tmp_path):
    folder = number_pictures(tmp_path / "walk", range(9))
    video = read_sequence(find_sequence(folder), SIZE, Selection(9, fps=24.0, model_fps=24.0))
    assert video.fps == 24 and "24 fps is assumed" in video.notes[1] and len(video.notes) == 2


@pytest.mark.parametrize("name", ["{:04d}.png", "{}.jpg", "frame_{}.webp", "shot.{:05d}.bmp"])
def test_a_folder_of_numbered_pictures_is_a_clip(tmp_path, name):
    folder = number_pictures(tmp_path / "walk", range(3, 14), name)
    clip = read(folder)
    assert numbers(clip) == list(range(9)) and clip.fps == 16 and clip.name == "walk"
    first, last = name.format(3), name.format(13)
    assert clip.notes[0] == f"walk: 11 numbered pictures are its frames, {first} to {last}"
    assert clip.notes[1].endswith(
        "its frame rate is not known; 16 fps is assumed, and frames are taken one by one"
    )
    assert clip.notes[2] == "walk: 2 frames after number 8 are not used"


def test_a_sequence_is_named_by_its_folder_by_a_pattern_or_by_a_first_picture(tmp_path):
    folder = number_pictures(tmp_path / "walk", range(12))
    for pattern in ("%04d.png", "####.png", "%d.png"):
        clip = read(folder / pattern)
        assert numbers(clip) == list(range(9)) and clip.name == "walk"
    assert numbers(read(folder / "0002.png")) == list(range(2, 11))
    assert numbers(read(folder, start=1, stride=2, frames=5)) == [1, 3, 5, 7, 9]


def test_missing_numbers_and_other_series_are_told(tmp_path):
    folder = number_pictures(tmp_path / "walk", [0, 1, 2, 5, 6, 7, 8])
    number_pictures(folder, [0, 1], "depth_{}.png")
    clip = read(folder, frames=5)
    assert numbers(clip) == list(range(5))
    assert "walk: 2 numbers between 0 and 8 are missing" in clip.notes
    assert "walk: the series that begins with depth_0.png is not used" in clip.notes


def test_photographs_of_different_sizes_are_no_clip(tmp_path):
    folder = number_pictures(tmp_path / "dog", range(5))
    gray(2, (32, 48)).save(folder / "0002.png")
    with pytest.raises(
        ValueError, match="0002.png is 32x48, the frames before it are 32x32. Give frames of one"
    ):
        read(folder)


def test_pictures_without_numbers_are_no_clip(tmp_path):
    gray(0).save(tmp_path / "a.png")
    gray(1).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="holds no video .*no numbered pictures"):
        read(tmp_path)
    assert find_sequence(tmp_path / "nothing" / "%d.png") is None


def test_too_few_frames_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="walk gives 3 frames from number 0 at stride 1; a motion needs at least"
    ):
        read(number_pictures(tmp_path / "walk", range(3)))


def test_a_video_comes_before_pictures_beside_it(tmp_path):
    folder = number_pictures(tmp_path / "walk", range(9))
    animate(folder / "clip.gif", 60)
    assert read(folder).name == "clip"


def test_the_caption_of_a_sequence_lies_beside_its_folder(tmp_path):
    folder = number_pictures(tmp_path / "walk", range(9))
    with pytest.raises(ValueError, match="walk has no caption. .*into walk.txt"):
        read_motion_clip(folder, SIZE, 9)
    (tmp_path / "walk.txt").write_text("a ball is vvt rolling")
    assert read_motion_clip(folder, SIZE, 9).caption == "a ball is vvt rolling"
