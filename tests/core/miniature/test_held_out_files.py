"""Files of the held-out clips."""

import pytest

from smra_core.miniature.held_out_files import write_motion


@pytest.fixture
def folder(tmp_path):
    folder = write_motion(tmp_path / "clip", "zigzag")
    (folder / "00.mp4").write_bytes(b"the first encoding")
    return folder


def test_a_clip_that_is_there_is_not_encoded_again(folder):
    # Another encoding has other pixels, so that the run of the first one would not be found.
    assert write_motion(folder, "zigzag") == folder
    assert (folder / "00.mp4").read_bytes() == b"the first encoding"


def test_the_clip_of_another_motion_takes_its_place(folder):
    write_motion(folder, "hook")
    assert (folder / "00.mp4").read_bytes() != b"the first encoding"
