"""The authors' own folder layout, with real photographs and clips, where they lie beside the checkout."""

from pathlib import Path

import pytest

from smra_core.data.motion_clip import read_motion_clip
from smra_core.data.subject_set import read_subject_set

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the checkout")


def test_the_subject_is_read_as_the_authors_wrote_it():
    images, notes, _ = read_subject_set(DATA / "subject_customized" / "dog", (128, 128), require_masks=True)
    assert [image.name for image in images] == [f"images/0{i}.png" for i in range(5)]
    assert {image.caption for image in images} == {"A picture of sks dog"}
    assert all(0.05 < image.mask_px.mean() < 0.95 for image in images)
    assert len(notes) == 6 and notes[5] == "prompts.txt: not part of the set"
    assert (
        notes[0]
        == "images/00.png: its mask masks/00.png covers 54 % of the picture and touches the bottom edge"
    )


@pytest.mark.parametrize(
    "name, caption",
    [
        ("person_walking", "a person is vvt walking"),
        ("person_lifting_barbell", "a person is vvt lifting a barbell"),
    ],
)
def test_the_motions_are_read_as_the_authors_wrote_them(name, caption):
    clip = read_motion_clip(DATA / "motion_customized" / "video" / name, (144, 80))
    assert clip.caption == caption and clip.fps == 16 and clip.frames.shape == (49, 3, 80, 144)
    assert clip.notes == [
        "00.mp4: 720x480 is cropped to its central 720x400",
        "00.mp4: 16 fps clip: frames are taken one by one",
    ]
    assert (clip.frames[1:] - clip.frames[:-1]).abs().mean() > 1e-3
