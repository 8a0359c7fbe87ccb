import numpy as np
import pytest
from PIL import Image

from smra_core.data.subject_set import read_subject_set

SIDE = 32
SIZE = (SIDE, SIDE)
CAPTION = "A picture of sks dog"
ORIENTATION = 0x0112


def picture(path, size=(64, 64), color=(200, 100, 50), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


def mask(path, box, size=(64, 64)):
    """White inside the box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Image.new("L", size)
    drawn.paste(255, box)
    drawn.save(path)


@pytest.fixture
def plain(tmp_path):
    """A folder of two pictures with captions beside them and masks in masks/."""
    home = tmp_path / "dog"
    for number in (0, 1):
        picture(home / f"{number:02}.png")
        mask(home / "masks" / f"{number:02}.png", (16, 16, 48, 48))
        (home / f"{number:02}.txt").write_text(f"{CAPTION} {number}")
    return home


@pytest.fixture
def authors(tmp_path):
    """The authors' layout: images/, masks/, a table whose names start in its own folder."""
    home = tmp_path / "dog"
    lines = ["video,mask,prompt"]
    for number in (0, 1):
        picture(home / "images" / f"{number:02}.png")
        mask(home / "masks" / f"{number:02}.png", (16, 16, 48, 48))
        lines.append(f"images/{number:02}.png,masks/{number:02}.png,{CAPTION}")
    table(home, *lines)
    return home


def without_shares(notes):
    return [note for note in notes if " covers " not in note]


def table(home, *lines):
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")


def test_a_plain_folder_gives_pictures_masks_and_captions(plain):
    images, notes, _ = read_subject_set(plain, SIZE)
    assert [image.name for image in images] == ["00.png", "01.png"]
    covers = "covers 25 % of the picture and touches no edge"
    assert notes == [f"{name}: its mask masks/{name} {covers}" for name in ("00.png", "01.png")]
    assert [image.caption for image in images] == [f"{CAPTION} 0", f"{CAPTION} 1"]
    first = images[0]
    assert first.pixels.shape == (3, SIDE, SIDE)
    assert first.pixels[:, 0, 0].tolist() == pytest.approx([200 / 255, 100 / 255, 50 / 255])
    assert first.mask_px.shape == (1, SIDE, SIDE) and first.mask_px.unique().tolist() == [0, 1]
    assert first.mask_px[0, 8:24, 8:24].all() and first.mask_px.sum() == 16 * 16


@pytest.mark.parametrize("given", ["folder", "table"])
def test_the_authors_layout_is_read_from_its_folder_or_its_table(authors, given):
    images, notes, _ = read_subject_set(authors if given == "folder" else authors / "metadata.csv", SIZE)
    assert [image.name for image in images] == ["images/00.png", "images/01.png"]
    assert without_shares(notes) == []
    assert {image.caption for image in images} == {CAPTION}
    assert all(image.mask_px.sum() == 16 * 16 for image in images)


def test_a_table_written_from_the_parent_folder_is_understood(authors):
    table(authors, "video,mask,prompt", f"dog/images/00.png,dog/masks/00.png,{CAPTION}")
    (image,) = read_subject_set(authors, SIZE).images
    assert image.name == "images/00.png" and image.mask_px.sum() == 16 * 16


def test_a_table_without_a_mask_column_finds_masks_by_their_stem(authors):
    table(authors, "file_name,text", f"images/01.png,{CAPTION}")
    (image,), notes, _ = read_subject_set(authors, SIZE)
    assert image.mask_px.sum() == 16 * 16
    assert without_shares(notes) == [
        "images/00.png: not part of the set",
        "masks/00.png: not part of the set",
    ]


def test_one_caption_for_all_comes_before_every_other(plain):
    images = read_subject_set(plain, SIZE, caption=" a sks toy ").images
    assert [image.caption for image in images] == ["a sks toy"] * 2


def test_a_picture_without_a_caption_is_named(plain):
    (plain / "01.txt").unlink()
    with pytest.raises(
        ValueError, match=r"01.png has no caption. Write one.*into 01.txt or the prompt column"
    ):
        read_subject_set(plain, SIZE)


def test_a_caption_that_is_not_utf8_is_named(plain):
    (plain / "01.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="01.txt is not UTF-8 text"):
        read_subject_set(plain, SIZE)


def test_a_picture_held_upright_is_turned_together_with_the_shape_of_its_mask(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored lying, seen standing
    picture(tmp_path / "a.png", (64, 32), exif=exif)
    mask(tmp_path / "masks" / "a.png", (0, 0, 32, 32), size=(32, 64))
    (image,), notes, _ = read_subject_set(tmp_path, SIZE, caption=CAPTION)
    assert without_shares(notes) == [
        "a.png: 32x64 is cropped to its central 32x32",
        "a.png: the crop cuts off 50 % of the subject's mask",
    ]
    assert image.mask_px[0, : SIDE // 2].all() and not image.mask_px[0, SIDE // 2 :].any()
    mask(tmp_path / "masks" / "a.png", (0, 0, 32, 32), size=(96, 32))
    with pytest.raises(ValueError, match=r"masks.a.png is 96x32, its picture is 32x64 \(upright\)"):
        read_subject_set(tmp_path, SIZE, caption=CAPTION)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_in_the_shape_of_the_stored_picture_is_turned_with_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture(tmp_path / "a.png", (64, 32), exif=exif)
    mask(tmp_path / "masks" / "a.png", (24, 8, 64, 24), size=(64, 32))
    (image,), notes, _ = read_subject_set(tmp_path, (32, 64), caption=CAPTION)
    (standing,) = image.mask_px
    assert standing.sum() == 40 * 16 and "masks/a.png: turned as its picture's EXIF orientation says" in notes
    # The mask reaches the right edge of the stored picture: the upper or lower edge when it stands.
    reaches_top, reaches_bottom = standing[0].any().item(), standing[-1].any().item()
    assert (reaches_top, reaches_bottom) == (orientation in (7, 8), orientation in (5, 6))


def test_a_mask_that_fits_both_ways_is_taken_as_upright_and_told(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    picture(tmp_path / "a.png", (64, 64), exif=exif)
    mask(tmp_path / "masks" / "a.png", (8, 8, 32, 32))
    (image,), notes, _ = read_subject_set(tmp_path, SIZE, caption=CAPTION)
    assert image.mask_px[0, 4:16, 4:16].all()
    assert notes[0] == (
        "masks/a.png: its picture is turned by its EXIF orientation (3); the mask is taken as upright"
    )


@pytest.mark.parametrize(
    "fore, back, inverted", [(255, 0, False), (0, 255, True), (255, 255, True), (200, 128, True)]
)
def test_a_mask_of_the_background_is_warned_of(tmp_path, fore, back, inverted):
    picture(tmp_path / "a.png")
    drawn = Image.new("L", (64, 64), back)
    drawn.paste(fore, (16, 16, 48, 48))
    (tmp_path / "masks").mkdir()
    drawn.save(tmp_path / "masks" / "a.png")
    (note,) = read_subject_set(tmp_path, SIZE, caption=CAPTION).notes
    assert note.startswith("a.png: its mask masks/a.png covers ") and ("Is it inverted?" in note) == inverted


def test_an_enlarged_picture_is_told(tmp_path):
    picture(tmp_path / "a.png", (20, 16))
    notes = read_subject_set(tmp_path, SIZE, caption=CAPTION).notes
    assert notes[:2] == [
        "a.png: 20x16 is cropped to its central 16x16",
        "a.png: 16x16 is enlarged 2 times to 32x32, which adds no detail",
    ]


def test_a_mask_of_another_size_and_the_same_shape_is_resized_and_told(plain):
    mask(plain / "masks" / "00.png", (4, 4, 12, 12), size=(16, 16))
    images, notes, _ = read_subject_set(plain, SIZE)
    assert without_shares(notes) == ["masks/00.png: resized from 16x16 to its picture's 64x64"]
    assert images[0].mask_px.sum() == 16 * 16


def test_transparency_serves_as_the_mask_when_there_is_no_other(plain):
    cut = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    cut.paste((255, 0, 0, 255), (0, 0, 32, 64))
    cut.save(plain / "00.png")
    images, notes, _ = read_subject_set(plain, SIZE)
    assert images[0].mask_px.sum() == 16 * 16 and "00.png: its transparent parts lie over white" in notes
    (plain / "masks" / "00.png").unlink()
    images, notes, _ = read_subject_set(plain, SIZE)
    assert images[0].mask_px[0, :, :16].all() and images[0].mask_px.sum() == 16 * 32
    assert "00.png: its transparency serves as the mask" in notes


def test_odd_sizes_and_gray_pictures_become_the_wanted_size_in_rgb(tmp_path):
    Image.fromarray(np.full((31, 53), 128, np.uint8)).save(tmp_path / "a.png")
    mask(tmp_path / "masks" / "a.png", (0, 0, 53, 31), size=(53, 31))
    (image,), notes, _ = read_subject_set(tmp_path, SIZE, caption=CAPTION)
    assert image.pixels.shape == (3, SIDE, SIDE) and image.mask_px.all()
    assert notes[0] == "a.png: 53x31 is cropped to its central 31x31"


def test_missing_masks_are_told_or_refused_by_name(plain):
    (plain / "masks" / "01.png").unlink()
    images, notes, _ = read_subject_set(plain, SIZE)
    assert images[1].mask_px is None and without_shares(notes) == ["01.png: no mask"]
    with pytest.raises(
        ValueError, match="1 of 2 pictures have no mask: 01.png. Put a mask with the same stem"
    ):
        read_subject_set(plain, SIZE, require_masks=True)


def test_an_empty_mask_is_named(plain):
    mask(plain / "masks" / "01.png", (0, 0, 0, 0))
    with pytest.raises(ValueError, match="masks.01.png is empty"):
        read_subject_set(plain, SIZE)


def test_a_subject_that_the_crop_takes_away_is_named(tmp_path):
    picture(tmp_path / "a.png", (128, 64))
    mask(tmp_path / "masks" / "a.png", (0, 0, 16, 64), size=(128, 64))
    with pytest.raises(ValueError, match="masks.a.png has no subject left after resizing and cropping"):
        read_subject_set(tmp_path, SIZE, caption=CAPTION)


def test_what_is_left_out_is_told(plain):
    (plain / "notes.md").write_text("x")
    (plain / "clip.gif").write_bytes(b"x")
    (plain / ".hidden.png").write_bytes(b"x")
    mask(plain / "masks" / "99.png", (0, 0, 8, 8))
    notes = read_subject_set(plain, SIZE).notes
    assert sorted(without_shares(notes)) == [
        f"{name}: not part of the set" for name in ("clip.gif", "masks/99.png", "notes.md")
    ]


def test_a_table_that_names_a_missing_or_outside_file_says_which_line(authors):
    table(authors, "video,mask,prompt", f"images/07.png,masks/00.png,{CAPTION}")
    with pytest.raises(
        ValueError, match="metadata.csv, line 2 names 'images/07.png', and there is no such file"
    ):
        read_subject_set(authors, SIZE)
    mask(authors.parent / "mask.png", (0, 0, 8, 8))
    table(authors, "video,mask,prompt", f"images/00.png,../mask.png,{CAPTION}")
    with pytest.raises(ValueError, match="metadata.csv, line 2 names '../mask.png', which leads out of"):
        read_subject_set(authors, SIZE)
    table(authors, "video,mask,prompt", f",masks/00.png,{CAPTION}")
    with pytest.raises(ValueError, match="metadata.csv, line 2 names no picture"):
        read_subject_set(authors, SIZE)


def test_a_folder_without_pictures_says_what_it_saw(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no pictures .*seen: \['clip.mp4'\]"):
        read_subject_set(tmp_path, SIZE)
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        read_subject_set(tmp_path / "nowhere", SIZE)


def test_a_broken_picture_is_named(plain):
    (plain / "01.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="01.png cannot be read as a picture"):
        read_subject_set(plain, SIZE)
