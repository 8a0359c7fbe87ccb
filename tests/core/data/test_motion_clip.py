import pytest
import torch

from smra_core.data.motion_clip import read_motion_clip
from smra_core.data.video import write_video

SIDE = 32
SIZE = (SIDE, SIDE)
CAPTION = "a person is vvt walking"
SIXTEEN = "16 fps clip: frames are taken one by one"


def video(path, frames=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (32 + 16 * torch.arange(frames)) / 255
    write_video(path, levels[:, None, None, None].expand(frames, 3, SIDE, SIDE), 16)


@pytest.fixture
def authors(tmp_path):
    """The authors' layout: one folder a motion, a table whose names start in its folder's parent."""
    home = tmp_path / "video" / "person_walking"
    video(home / "00.mp4")
    table(home, "video,prompt", f'person_walking/00.mp4,"{CAPTION}"')
    return home


def table(home, *lines):
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")


def read(path, **options):
    return read_motion_clip(path, SIZE, **{"frames": 9, **options})


@pytest.mark.parametrize("given", [".", "metadata.csv", "00.mp4"])
def test_the_authors_layout_is_read_from_folder_table_or_file(authors, given):
    clip = read(authors / given)
    assert (clip.name, clip.caption, clip.fps, clip.notes) == ("00", CAPTION, 16, [f"00.mp4: {SIXTEEN}"])
    assert clip.path.samefile(authors / "00.mp4") and clip.frames.shape == (9, 3, SIDE, SIDE)


def test_a_table_written_from_its_own_folder_is_understood_too(authors):
    table(authors, "video,prompt", f"00.mp4,{CAPTION}")
    assert read(authors).caption == CAPTION


def test_a_table_one_folder_up_gives_the_caption_of_a_file(authors):
    (authors / "metadata.csv").rename(authors.parent / "metadata.csv")
    assert read(authors / "00.mp4").caption == CAPTION


def test_a_caption_file_and_a_given_caption_come_before_the_table(authors):
    (authors / "00.txt").write_text("a dog is vvt\nrunning")
    assert read(authors / "00.mp4").caption == "a dog is vvt running"
    assert read(authors / "00.mp4", caption="mine").caption == "mine"


def test_other_rows_and_other_videos_are_told(authors):
    video(authors / "01.mp4")
    table(authors, "video,prompt", f"person_walking/01.mp4,{CAPTION}", "person_walking/00.mp4,b")
    clip = read(authors)
    assert clip.name == "01" and clip.notes[0] == "metadata.csv, line 3: person_walking/00.mp4 is not used"
    (authors / "metadata.csv").unlink()
    clip = read(authors, caption=CAPTION)
    assert clip.name == "00" and clip.notes[0] == "01.mp4: not used, the first video is"


def test_a_short_clip_is_trimmed_and_told(authors):
    video(authors / "00.mp4", frames=8)
    clip = read(authors)
    assert len(clip.frames) == 5
    assert clip.notes[-1:] == ["00.mp4: 9 frames were asked for, 8 are there, 5 are used (WAN needs 4n+1)"]


def test_a_clip_of_fewer_than_five_frames_is_named(authors):
    with pytest.raises(
        ValueError, match="00.mp4 gives 4 frames from number 5 at stride 1; a motion needs at"
    ):
        read(authors, start=5)


def test_a_clip_without_a_caption_is_named(authors):
    (authors / "metadata.csv").unlink()
    with pytest.raises(ValueError, match="00.mp4 has no caption. Give one, such as .*write it into 00.txt"):
        read(authors)


def test_captions_and_tables_that_are_not_utf8_are_named(authors):
    (authors / "00.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="00.txt is not UTF-8 text"):
        read(authors / "00.mp4")
    (authors / "metadata.csv").write_bytes(b"video,prompt\n00.mp4,caf\xe9\n")
    with pytest.raises(ValueError, match="metadata.csv is not UTF-8 text"):
        read(authors)


def test_a_table_that_leads_outside_is_refused(authors):
    video(authors.parent / "other" / "00.mp4")
    table(authors, "video,prompt", f"other/00.mp4,{CAPTION}")
    with pytest.raises(ValueError, match="line 2 names 'other/00.mp4', which leads out of .*person_walking"):
        read(authors)
    table(authors, "video,prompt", f",{CAPTION}")
    with pytest.raises(ValueError, match="line 2 names no video"):
        read(authors)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.mp4 does not exist"):
        read(tmp_path / "nowhere.mp4")
    (tmp_path / "a.doc").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no video .*seen: \['a.doc'\]"):
        read(tmp_path)


@pytest.mark.parametrize(
    "frames, message", [(1, "at least 5 frames, got 1"), (50, "4n.1 frames, got 50. Use 49")]
)
def test_frame_counts_that_wan_cannot_take_are_refused(authors, frames, message):
    with pytest.raises(ValueError, match=message):
        read(authors, frames=frames)


def test_a_clip_of_another_rate_is_brought_to_sixteen_frames_a_second(tmp_path):
    levels = (32 + 4 * torch.arange(40)) / 255
    write_video(tmp_path / "fast.mp4", levels[:, None, None, None].expand(40, 3, SIDE, SIDE), 60)
    clip = read(tmp_path / "fast.mp4", caption=CAPTION)
    numbers = [round((frame.mean().item() * 255 - 32) / 4) for frame in clip.frames]
    assert numbers == [0, 4, 7, 11, 15, 19, 22, 26, 30] and clip.fps == 16
    assert clip.notes[0] == "fast.mp4: 60 fps clip: every 3.75th frame by time, 16 fps"
    kept = read(tmp_path / "fast.mp4", caption=CAPTION, fps=None)
    assert (
        kept.fps == 60
        and "fast.mp4: WAN's videos have 16 fps: the motion becomes 3.75 times slower" in kept.notes
    )


def test_the_miniatures_clip_of_eight_frames_a_second_is_taken_frame_by_frame(tmp_path):
    levels = (32 + 16 * torch.arange(9)) / 255
    write_video(tmp_path / "slow.mp4", levels[:, None, None, None].expand(9, 3, SIDE, SIDE), 8)
    clip, kept = (read(tmp_path / "slow.mp4", caption=CAPTION, fps=fps) for fps in (16.0, None))
    assert torch.equal(clip.frames, kept.frames) and clip.fps == kept.fps == 8
    assert "slow.mp4: WAN's videos have 16 fps: the motion becomes 2 times faster" in clip.notes


def test_an_impossible_frame_rate_is_refused(authors):
    with pytest.raises(ValueError, match="frame rate to read at is 0; give more than 0"):
        read(authors, fps=0.0)
