import numpy as np
import pytest
from PIL import Image

from smra_core.data.picture import PICTURE_SUFFIXES, read_mask, read_picture

ORIENTATION = 0x0112
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_halves(width=4, height=2):
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), BLUE)
    picture.paste(RED, (0, 0, width // 2, height))
    return picture


@pytest.mark.parametrize(
    "orientation, size, top_left, bottom_right",
    [(1, (4, 2), RED, BLUE), (3, (4, 2), BLUE, RED), (6, (2, 4), RED, BLUE), (8, (2, 4), BLUE, RED)],
)
def test_a_picture_is_turned_as_the_camera_was_held(tmp_path, orientation, size, top_left, bottom_right):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    two_halves().save(tmp_path / "held.png", exif=exif)
    rgb = read_picture(tmp_path / "held.png").rgb
    assert rgb.size == size
    assert rgb.getpixel((0, 0)) == top_left and rgb.getpixel((size[0] - 1, size[1] - 1)) == bottom_right


def test_transparent_parts_lie_over_white_and_give_a_mask(tmp_path):
    picture = two_halves().convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 1, 2))
    picture.save(tmp_path / "cut.png")
    read = read_picture(tmp_path / "cut.png")
    assert read.rgb.mode == "RGB" and read.rgb.getpixel((0, 0)) == WHITE and read.rgb.getpixel((1, 0)) == RED
    assert list(read.alpha_mask.crop((0, 0, 4, 1)).tobytes()) == [0, 255, 255, 255]
    assert read.notes == ["its transparent parts lie over white"]


def test_an_alpha_channel_that_hides_nothing_is_no_mask(tmp_path):
    two_halves().convert("RGBA").save(tmp_path / "opaque.png")
    assert read_picture(tmp_path / "opaque.png")[1:] == (None, [], 1)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA"])
def test_gray_palette_and_print_pictures_become_rgb(tmp_path, mode):
    name = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 2), WHITE).convert(mode).save(name)
    rgb = read_picture(name).rgb
    assert rgb.mode == "RGB" and rgb.getpixel((3, 1)) == WHITE


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert [read_picture(tmp_path / "deep.png").rgb.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


@pytest.mark.parametrize(
    "values, message",
    [
        (np.zeros((2, 2), np.float32), "float.tif stores floating-point values. Save it as an 8-bit"),
        (np.full((2, 2), 70000, np.int32), "float.tif stores values from 70000 to 70000; 16 bits hold"),
    ],
)
def test_values_beyond_sixteen_bits_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=message):
        read_picture(tmp_path / "float.tif")


@pytest.mark.parametrize(
    "suffix", [suffix for suffix in PICTURE_SUFFIXES if suffix not in (".heic", ".heif")]
)
def test_every_kind_of_picture_that_is_looked_for_can_be_read(tmp_path, suffix):
    Image.new("RGB", (4, 2), WHITE).save(tmp_path / f"a{suffix}")
    assert read_picture(tmp_path / f"a{suffix}").rgb.getpixel((3, 1)) == WHITE


@pytest.mark.parametrize("name, kind", [("two.tif", "TIFF"), ("phone.jpg", "MPO")])
def test_of_several_pictures_in_a_file_the_first_is_used_and_that_is_told(tmp_path, name, kind):
    first, second = Image.new("RGB", (8, 8), WHITE), Image.new("RGB", (8, 8), BLUE)
    first.save(tmp_path / name, kind, save_all=True, append_images=[second])
    read = read_picture(tmp_path / name)
    assert read.rgb.getpixel((0, 0)) == WHITE and read.notes == ["it holds 2 pictures, the first is used"]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match="bad.png cannot be read as a picture .*Save it again as PNG"):
        read_picture(tmp_path / "bad.png")


def test_a_cut_short_picture_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.png cannot be read as a picture"):
        read_picture(tmp_path / "cut.png")


@pytest.mark.parametrize(
    "values, notes",
    [
        ([0, 128, 255], []),
        ([0, 1, 1], ["its brightest value is 1 of 255; values above half of that count as subject"]),
    ],
)
def test_a_mask_is_what_is_brighter_than_half(tmp_path, values, notes):
    Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "mask.png")
    mask, seen = read_mask(tmp_path / "mask.png")
    assert list(mask.tobytes()) == [0, 255, 255] and seen == notes


def test_a_colored_mask_counts_and_its_transparent_part_does_not(tmp_path):
    mask = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    mask.putpixel((1, 0), (0, 0, 255, 255))
    mask.putpixel((2, 0), (255, 255, 255, 0))
    mask.save(tmp_path / "mask.png")
    assert list(read_mask(tmp_path / "mask.png")[0].tobytes()) == [0, 255, 0]


def test_an_empty_mask_is_refused(tmp_path):
    Image.new("L", (3, 3)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"mask .*mask.png is empty \(all black\). Paint the subject white"):
        read_mask(tmp_path / "mask.png")
