from pathlib import Path

import pytest
import torch

from smra_core.data.color_copies import add_color_copies, change_colors, describe_copies
from smra_core.data.motion_clip import MotionClip

FRAMES, SIDE = 5, 8


def random_frames(seed):
    return torch.rand(FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def make_clip(name, seed):
    return MotionClip(name, Path(f"{name}.mp4"), random_frames(seed), f"a {name}", 16.0, ["cropped"])


def test_a_copy_has_other_colors_that_are_the_same_in_all_frames():
    still = random_frames(0)[:1].expand(FRAMES, 3, SIDE, SIDE)
    ((first, second),) = change_colors([still], 2, seed=0)
    for copy in (first, second):
        assert all(torch.equal(copy[0], frame) for frame in copy)
        assert copy.min() >= 0 and copy.max() <= 1 and (copy - still).abs().mean() > 0.05
    assert (first - second).abs().mean() > 0.05


def test_a_gray_pixel_stays_gray_and_pixels_stay_where_they_are():
    """Hue and saturation do nothing to gray, and brightness and contrast are one number for all channels."""
    frames = torch.full((FRAMES, 3, SIDE, SIDE), 0.5)
    for index, frame in enumerate(frames):
        frame[:, index] = torch.tensor([0.9, 0.2, 0.1])[:, None]
    ((copy,),) = change_colors([frames], 1, seed=2)
    for index, frame in enumerate(copy):
        gray = torch.arange(SIDE) != index
        torch.testing.assert_close(frame[0, gray], frame[1, gray])
        torch.testing.assert_close(frame[0, gray], frame[2, gray])
        assert frame[:, index].std(0).min() > 0.05


def test_copies_follow_the_seed_and_leave_torchs_random_state_alone():
    clips = [random_frames(0), random_frames(0)]
    state = torch.get_rng_state()
    (first, second), (again, _), (other, _) = (change_colors(clips, 1, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], second[0])  # two clips are not turned the same way


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_every_seed_of_a_run_is_taken(seed):
    assert len(change_colors([random_frames(0)], 1, seed)[0]) == 1


def test_copies_stand_behind_their_clip_with_all_that_is_its_own():
    walk, run = make_clip("walk", 0), make_clip("run", 1)
    clips = add_color_copies([walk, run], 2, seed=0)
    assert [clip.is_color_copy for clip in clips] == [False, True, True] * 2
    assert clips[0] is walk and clips[3] is run and len({clip.name for clip in clips}) == 6
    assert {clip.caption for clip in clips[3:]} == {"a run"}
    assert add_color_copies([walk, run], 0, seed=0) == [walk, run]


def test_how_many_there_are_is_said_in_words():
    assert describe_copies(1, 3) == "1 clip and 3 copies in other colors"
    assert describe_copies(2, 1) == "2 clips and 1 copy in other colors"
    assert describe_copies(2, 0) == "2 clips"
