import numpy as np
import pytest
from PIL import Image

from smra_core.data.picture import PICTURE_SUFFIXES, read_mask, read_picture, rotate_as_stored

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


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff\xe0"]
)
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_as_it_is_stored_is_turned_by_the_orientation_of_another_file(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8))
    noise.save(tmp_path / "held.png", exif=exif)
    read = read_picture(tmp_path / "held.png")
    assert read.orientation == orientation
    assert rotate_as_stored(noise, orientation).tobytes() == read.rgb.tobytes()


@pytest.fixture
def small_limit(monkeypatch):
    """Pillow's limit, and ours, at 20 000 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr("smra_core.data.picture._MOST_PIXELS", 20_000)
    monkeypatch.setattr("smra_core.data.picture._DRAFT_SIDE", 50)


def test_a_very_large_jpeg_is_decoded_at_a_fraction_of_its_size_and_told(tmp_path, small_limit):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    two_halves(400, 200).save(tmp_path / "large.jpg", exif=exif)
    read = read_picture(tmp_path / "large.jpg")
    assert read.rgb.size == (50, 100)
    assert read.rgb.getpixel((25, 5))[0] > 200 and read.rgb.getpixel((25, 95))[2] > 200
    assert read.notes == ["its 0.1 megapixels are read at 1/4 of their size"]


def test_a_very_large_picture_of_another_kind_is_refused_with_its_size(tmp_path, small_limit):
    two_halves(400, 200).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="large.png has 0.1 megapixels. Make it smaller than"):
        read_picture(tmp_path / "large.png")


@pytest.mark.filterwarnings("error")
def test_a_large_picture_within_the_limit_is_read_without_a_warning(tmp_path, small_limit):
    two_halves(150, 100).save(tmp_path / "large.png")
    assert read_picture(tmp_path / "large.png").notes == []


@pytest.mark.parametrize(
    "head, kind",
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, whatever its name says"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"GIF89a", "a GIF"),
        (b"%PDF-1.4", "a PDF"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_what_is_no_picture_is_named_by_its_content(tmp_path, head, kind):
    (tmp_path / "IMG_1.jpg").write_bytes(head + b"\0" * 60)
    with pytest.raises(ValueError, match=f"IMG_1.jpg is {kind}"):
        read_picture(tmp_path / "IMG_1.jpg")


def test_heic_is_read_where_its_package_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    two_halves(64, 32).save(tmp_path / "a.heic")
    rgb = read_picture(tmp_path / "a.heic").rgb
    assert rgb.size == (64, 32) and rgb.getpixel((5, 16))[0] > 200


def test_a_black_mask_with_transparent_parts_is_read_by_its_alpha(tmp_path):
    mask = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    mask.putpixel((1, 0), (0, 0, 0, 255))
    mask.save(tmp_path / "mask.png")
    read, notes = read_mask(tmp_path / "mask.png")
    assert list(read.tobytes()) == [0, 255, 0]
    assert notes == ["it is black all over; its opaque parts count as subject"]
    Image.new("RGBA", (3, 1), (0, 0, 0, 0)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="is empty"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_masks_of_every_mode_mean_the_same(tmp_path, mode):
    mask = Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8))
    deep = Image.fromarray(np.array([[0, 65535, 65535, 0]], np.uint16))
    (deep if mode == "I;16" else mask.convert(mode)).save(tmp_path / "mask.png")
    assert list(read_mask(tmp_path / "mask.png")[0].tobytes()) == [0, 255, 255, 0]
