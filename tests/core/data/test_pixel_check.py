import pytest
import torch

from smra_core.data.pixel_check import check_clip, check_mask_values, check_none_is_black, split_alpha


def pictures(channels=3, count=2):
    generator = torch.Generator().manual_seed(0)
    return 0.1 + 0.8 * torch.rand(count, 4, 6, channels, generator=generator)


def test_pictures_in_range_stay_as_they_are():
    images = pictures()
    rgb, alpha, notes = split_alpha(images)
    assert rgb is images and alpha is None and notes == []
    check_none_is_black(images)


def test_small_overshoot_is_accepted():
    images = pictures()
    images[0, 0, 0], images[0, 0, 1] = -0.1, 1.1
    assert split_alpha(images)[0] is images


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda x: x * 255,
            "Picture 1 of 2 holds values from .*; pictures have 0 to 1. Before .* divide by 255",
        ),
        (lambda x: (x * 255).to(torch.uint8), "divide by 255"),
        (lambda x: x * 4 - 2, r"Picture 1 of 2 holds values from -1.*map them to \[0, 1\]"),
        (lambda x: x.masked_fill(x > 0.89, float("nan")), "holds values that are no numbers"),
        (lambda x: x.masked_fill(x > 0.89, float("inf")), "holds values that are no numbers"),
        (lambda x: x[..., :1], "The pictures have 1 channels; needed are pictures with 3"),
        (lambda x: x[..., :2], "have 2 channels"),
        (lambda x: x[..., 0], r"have the shape \(2, 4, 6\)"),
        (lambda x: x[:0], "needed are pictures"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(spoil, message):
    with pytest.raises(ValueError, match=message):
        split_alpha(spoil(pictures()))


def test_only_the_spoiled_picture_is_named():
    images = pictures(count=3)
    images[1, 2, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="Picture 2 of 3 holds values that are no numbers"):
        split_alpha(images)
    images[1] = 0
    with pytest.raises(ValueError, match="Picture 2 of 3 is black all over"):
        check_none_is_black(images)


def test_transparent_parts_become_white_and_are_told():
    images = pictures(channels=4)
    images[..., 3] = 1
    images[0, :2, :, 3], images[0, 2, :, 3] = 0, 0.5
    rgb, alpha, notes = split_alpha(images)
    assert (rgb[0, :2] == 1).all() and torch.equal(rgb[1], images[1, ..., :3])
    assert torch.allclose(rgb[0, 2], images[0, 2, :, :3] / 2 + 0.5)
    assert alpha.shape == (2, 4, 6) and notes == ["the pictures' transparent parts lie over white"]
    images[..., 3] = 1
    rgb, alpha, notes = split_alpha(images)
    assert alpha is None and torch.equal(rgb, images[..., :3])
    assert notes == ["the pictures' fourth channel is opaque all over and not used"]
    images[1, ..., 3] = 0.1
    with pytest.raises(ValueError, match="Picture 2 is transparent all over"):
        split_alpha(images)


def test_a_clip_may_be_black_in_part_and_a_still_one_is_told():
    frames = pictures(count=5)
    frames[0] = 0
    assert check_clip(frames) == []
    assert "5 frames are all the same" in check_clip(frames[1:2].repeat(5, 1, 1, 1))[0]
    with pytest.raises(ValueError, match="clip's 5 frames are all black"):
        check_clip(torch.zeros_like(frames))


@pytest.mark.parametrize(
    "value, message", [(255.0, "Mask 1 of 1 holds .* divide by 255"), (float("nan"), "no num")]
)
def test_masks_in_another_range_are_refused(value, message):
    masks = torch.zeros(1, 4, 6)
    check_mask_values(masks)
    masks[0, 1, 1] = value
    with pytest.raises(ValueError, match=message):
        check_mask_values(masks)
