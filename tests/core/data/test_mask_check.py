import pytest
import torch

from smra_core.data.mask_check import describe_mask, list_touched_edges, may_be_inverted, may_be_mask

SIDE = 20


def box(left, top, right, bottom, value=1.0):
    mask_px = torch.full((SIDE, SIDE), 1 - value)
    mask_px[top:bottom, left:right] = value
    return mask_px


@pytest.mark.parametrize(
    "mask_px, told",
    [
        (box(5, 5, 15, 15), "covers 25 % of the picture and touches no edge"),
        (box(0, 5, 10, 15), "covers 25 % of the picture and touches the left edge"),
        (box(0, 10, 20, 20), "covers 50 % of the picture and touches the left, right and bottom edges"),
        (box(10, 10, 11, 11), "covers 0.25 % of the picture and touches no edge"),
    ],
)
def test_share_and_edges_of_a_subject_are_told(mask_px, told):
    assert describe_mask(mask_px) == told and not may_be_inverted(mask_px)


@pytest.mark.parametrize(
    "mask_px, told",
    [
        (box(5, 5, 15, 15, value=0.0), "covers 75 % of the picture and touches all four edges"),
        (box(1, 1, 19, 19, value=0.0), "covers 19 % of the picture and touches all four edges"),
        (box(1, 1, 19, 19), "covers 81 % of the picture and touches no edge"),
        (box(0, 0, 20, 20), "covers 100 % of the picture and touches all four edges"),
    ],
)
def test_a_mask_that_looks_like_the_background_is_warned_of(mask_px, told):
    assert describe_mask(mask_px) == f"{told}. Is it inverted? The subject must be white"
    assert may_be_inverted(mask_px)


def test_edges_are_named_as_they_lie():
    assert list_touched_edges(box(0, 3, 2, 5)) == ["left"]
    assert list_touched_edges(box(3, 0, 5, 2)) == ["top"]
    assert list_touched_edges(box(18, 3, 20, 5)) == ["right"]
    assert list_touched_edges(box(3, 18, 5, 20)) == ["bottom"]


def test_a_picture_of_black_and_white_alone_may_be_a_mask():
    drawn = box(5, 5, 15, 15)
    assert may_be_mask(drawn.expand(3, -1, -1)) and may_be_mask(0.97 * drawn.expand(3, -1, -1) + 0.02)
    assert not may_be_mask(torch.zeros(3, SIDE, SIDE)) and not may_be_mask(torch.ones(3, SIDE, SIDE))
    assert not may_be_mask(torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    assert not may_be_mask(torch.stack([drawn, drawn, drawn * 0.5]))  # yellow on black
    assert not may_be_mask(torch.linspace(0, 1, SIDE).expand(3, SIDE, SIDE))  # a photograph without color
