import numpy as np
import pytest
import torch
from PIL import Image

from smra_core.data.crop import check_target, cover_box, describe_crop, fit, to_pixels
from smra_core.wan.latents import to_uint8


@pytest.mark.parametrize(
    "source, size, expected",
    [
        ((512, 512), (512, 512), (0, 0, 512, 512)),
        ((780, 780), (512, 512), (0, 0, 780, 780)),
        ((720, 480), (576, 320), (0, 40, 720, 440)),  # 1.8 : 1 of 720x480 is 720x400
        ((480, 720), (512, 512), (0, 120, 480, 600)),
        ((101, 51), (50, 50), (25, 0, 76, 51)),
    ],
)
def test_the_box_covers_the_wanted_shape_at_the_center(source, size, expected):
    assert cover_box(source, size) == pytest.approx(expected)


def test_pixels_twice_as_wide_as_high_count_twice():
    assert cover_box((100, 100), (100, 100), pixel_aspect=2) == pytest.approx((25, 0, 75, 100))


def test_a_crop_is_told_and_a_fraction_of_a_pixel_is_not():
    assert describe_crop((720, 480), cover_box((720, 480), (576, 320))) == (
        "720x480 is cropped to its central 720x400"
    )
    assert describe_crop((781, 781), cover_box((781, 781), (512, 512))) is None
    assert describe_crop((1001, 1000), (0.2, 0, 1000.8, 1000)) is None


def test_shrinking_averages_instead_of_picking():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 32)))
    small = np.array(fit(stripes, (8, 2), (0, 0, 64, 8)))
    assert abs(small[:, 1:-1].astype(int) - 127).max() <= 1  # at the edges a stripe lacks its neighbor


def test_pixels_are_rows_of_rgb_between_zero_and_one():
    array = np.zeros((2, 3, 3), np.uint8)
    array[1, 2] = (255, 51, 0)
    pixels = to_pixels(Image.fromarray(array))
    assert pixels.shape == (3, 2, 3) and pixels.dtype == torch.float32
    assert pixels[:, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert to_pixels(Image.new("L", (3, 2), 255)).shape == (1, 2, 3)


def test_eight_bits_are_rounded_and_clamped():
    pixels = torch.tensor([[-0.1, 0.0, 0.49 / 255, 0.51 / 255], [0.5, 254.4 / 255, 1.0, 1.2]])
    eight_bit = to_uint8(pixels.requires_grad_())
    assert eight_bit.dtype == torch.uint8
    assert eight_bit.tolist() == [[0, 0, 0, 1], [128, 254, 255, 255]]  # 127.5 goes to the even neighbor


def test_eight_bits_come_back_from_pixels_unchanged():
    every_value = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(to_uint8(to_pixels(Image.fromarray(every_value[0].numpy()))), every_value)


@pytest.mark.parametrize("size", [(0, 512), (512, -1), (512,)])
def test_a_size_without_two_sides_is_refused(size):
    with pytest.raises(ValueError, match="wanted size is .*; give"):
        check_target(size)
