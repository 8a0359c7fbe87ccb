"""Masks are found by the names that other programs give them, and never taken for pictures."""

import unicodedata

import pytest
from PIL import Image

from smra_core.data.mask_files import is_mask_folder, select_pictures
from smra_core.data.subject_set import read_subject_set

SIZE = (32, 32)
COVERS = "covers 25 % of the picture and touches no edge"


def picture(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (200, 100, 50)).save(path, **options)


def mask(path, box=(16, 16, 48, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Image.new("L", (64, 64))
    drawn.paste(255, box)
    drawn.save(path)


def read(folder):
    return read_subject_set(folder, SIZE, caption="A picture of sks dog")


@pytest.mark.parametrize(
    "name",
    [
        "dog-masklabel.png", "dog_mask.png", "dog-mask.png", "dog.mask.png", "mask_dog.png", "mask-dog.png",
        "dog_MASK.PNG", "DOG_Mask.png", "dog_masks.webp", "dog_masklabel.tif", "dog mask.png",
        "dog.jpg_mask.png",
    ],
)  # fmt: skip
def test_a_file_called_like_a_mask_beside_its_picture_is_the_mask(tmp_path, name):
    picture(tmp_path / "dog.jpg")
    mask(tmp_path / name)
    (image,), notes, _ = read(tmp_path)
    assert image.name == "dog.jpg" and image.mask_px.sum() == 16 * 16
    assert notes == [f"dog.jpg: its mask {name} {COVERS}"]


@pytest.mark.parametrize("folder", ["masks", "mask", "Masks", "MASK", "masklabels", "_masks", "mask_label"])
@pytest.mark.parametrize("name", ["dog.png", "DOG.PNG", "dog.jpg.png", "dog_mask.png", "dog-masklabel.png"])
def test_masks_are_found_in_folders_of_any_usual_spelling(tmp_path, folder, name):
    picture(tmp_path / "dog.jpg")
    mask(tmp_path / folder / name)
    (image,), notes, _ = read(tmp_path)
    assert image.mask_px.sum() == 16 * 16 and notes == [f"dog.jpg: its mask {folder}/{name} {COVERS}"]


def test_masks_beside_the_pictures_of_a_table_are_found(tmp_path):
    picture(tmp_path / "images" / "dog.jpg")
    mask(tmp_path / "images" / "dog_mask.png")
    (tmp_path / "metadata.csv").write_text("image,prompt\nimages/dog.jpg,a sks dog\n")
    (image,), notes, _ = read_subject_set(tmp_path, SIZE)
    assert image.mask_px.sum() == 16 * 16
    assert notes == [f"images/dog.jpg: its mask images/dog_mask.png {COVERS}"]


def test_the_folder_of_the_authors_comes_first_and_the_other_mask_is_told(tmp_path):
    picture(tmp_path / "dog.png")
    mask(tmp_path / "masks" / "dog.png")
    mask(tmp_path / "Mask" / "dog.png", (0, 0, 64, 64))
    mask(tmp_path / "dog_mask.png", (0, 0, 64, 64))
    (image,), notes, _ = read(tmp_path)
    assert image.mask_px.sum() == 16 * 16
    assert sorted(notes[1:]) == ["Mask/dog.png: not part of the set", "dog_mask.png: not part of the set"]


@pytest.mark.parametrize("written, asked", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accented_names_match_in_either_normal_form(tmp_path, written, asked):
    picture(tmp_path / unicodedata.normalize(asked, "Hündchen.jpg"))
    mask(tmp_path / "masks" / unicodedata.normalize(written, "Hündchen.png"))
    assert read(tmp_path).images[0].mask_px is not None


def test_names_like_a_masks_are_pictures_where_their_picture_is_not_there():
    # The subject may be a mask. OneTrainer's ending says what the file is.
    assert select_pictures(["mask_1.png", "carnival_mask.png"]) == ["mask_1.png", "carnival_mask.png"]
    assert select_pictures(["dog.png", "cat-masklabel.png", "notes.txt"]) == ["dog.png"]
    assert select_pictures(["1.png", "mask_1.png", "unmasked.png", "masked.png"]) == [
        "1.png", "unmasked.png", "masked.png",
    ]  # fmt: skip


def test_a_label_without_its_picture_is_told(tmp_path):
    picture(tmp_path / "dog.jpg")
    mask(tmp_path / "cat-masklabel.png")
    images, notes, _ = read(tmp_path)
    assert len(images) == 1 and "cat-masklabel.png: not part of the set" in notes


def test_pictures_that_differ_in_their_ending_alone_are_told(tmp_path):
    picture(tmp_path / "dog.jpg")
    mask(tmp_path / "dog.png")
    images, notes, _ = read(tmp_path)
    assert len(images) == 2
    assert (
        "dog.jpg and dog.png are both pictures of the set. If one is the mask of the other, move it to "
        "masks/." in notes
    )


def test_other_folders_with_pictures_are_named(tmp_path):
    picture(tmp_path / "dog.jpg")
    mask(tmp_path / "alpha" / "dog.png")
    picture(tmp_path / "more" / "cat.jpg")
    (tmp_path / "texts").mkdir()
    notes = read(tmp_path).notes
    assert "the folder alpha/ with 1 pictures is not read. If they are masks, call it masks." in notes
    assert "the folder more/ with 1 pictures is not read." in notes
    assert not [note for note in notes if "texts" in note]


def test_a_mask_folder_beside_the_set_is_named(tmp_path):
    picture(tmp_path / "dog" / "dog.jpg")
    mask(tmp_path / "mask" / "dog.png")
    assert (
        "the folder mask/ beside dog/ is not read; move its masks to dog/masks/"
        in read(tmp_path / "dog").notes
    )
    mask(tmp_path / "dog" / "masks" / "dog.png")
    assert not [note for note in read(tmp_path / "dog").notes if "beside" in note]


@pytest.mark.parametrize("name", ["unmasked", "masquerade", "mask_old", "images"])
def test_other_folders_are_no_mask_folders(tmp_path, name):
    assert not is_mask_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["mask.png", "Mask.webp", "masks.png"])
def test_a_mask_without_a_name_belongs_to_the_only_picture(tmp_path, name):
    picture(tmp_path / "dog.jpg")
    mask(tmp_path / name)
    (image,), notes, _ = read(tmp_path)
    assert notes == [f"dog.jpg: its mask {name} {COVERS}"]
    picture(tmp_path / "dog2.jpg")
    images, notes, _ = read(tmp_path)
    assert [image.mask_px for image in images] == [None, None] and f"{name}: not part of the set" in notes
    assert select_pictures([name]) == [name]


@pytest.mark.parametrize("name", ["dog_alpha.png", "dog_seg.png", "dog (mask).png", "matte.png"])
def test_a_mask_of_an_unknown_name_is_told(tmp_path, name):
    picture(tmp_path / "dog.jpg")
    mask(tmp_path / name)
    told = "holds black and white alone. If it is a mask, move it to masks/ and give it its picture's name"
    assert f"{name}: {told}" in read(tmp_path).notes
