import math

import pytest
import torch

from smra_core.data.mask_morphology import close_holes, drop_specks, soften

SIDE, CENTER, LARGE = 65, 32, 24
OPERATIONS = [close_holes, drop_specks, soften]


def disk(radius, side=SIDE):
    offsets = torch.arange(side) - side // 2
    return (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()[None, None]


def square(first, last, side=SIDE):
    mask = torch.zeros(1, 1, side, side)
    mask[..., first : last + 1, first : last + 1] = 1
    return mask


@pytest.mark.parametrize("operation", OPERATIONS)
def test_radius_0_changes_nothing(operation):
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(operation(mask, 0), mask)


def test_a_hole_closes_at_the_first_radius_that_does_not_fit_into_it():
    whole = square(10, 50)
    for side in (1, 3):  # 3x3 holds the disk of radius 1, which is a plus of five pixels, and not that of 2
        mask = whole.clone()
        mask[
            ..., CENTER - side // 2 : CENTER + side // 2 + 1, CENTER - side // 2 : CENTER + side // 2 + 1
        ] = 0
        assert torch.equal(close_holes(mask, 2), whole)
        assert torch.equal(close_holes(mask, 1), whole) == (side == 1)


def test_specks_go_and_what_holds_the_disk_stays():
    speck = torch.zeros(1, 1, SIDE, SIDE)
    speck[..., 5, 7] = 1
    assert not drop_specks(speck, 1).any()
    assert torch.equal(drop_specks(disk(LARGE) + speck * (disk(LARGE) == 0), 1), drop_specks(disk(LARGE), 1))
    assert torch.equal(drop_specks(disk(3), 3), disk(3))
    assert not drop_specks(disk(2), 3).any()


def test_a_line_two_pixels_wide_is_a_spike_to_radius_1():
    line = torch.zeros(1, 1, SIDE, SIDE)
    line[..., 20:22, :] = 1
    assert not drop_specks(line, 1).any()


def test_opening_a_square_takes_only_its_corners():
    # Of the disk of radius 1, a plus, no part covers the corner pixel of a square: four pixels of 41 x 41 go.
    assert (square(10, 50) - drop_specks(square(10, 50), 1)).sum() == 4


@pytest.mark.parametrize("radius", [1, 2, 4, 8])
def test_a_large_disk_keeps_its_area_within_2_percent(radius):
    area = disk(LARGE).sum().item()
    assert area == pytest.approx(math.pi * LARGE**2, rel=0.01)
    for operation in (close_holes, drop_specks):
        assert operation(disk(LARGE), radius).sum().item() == pytest.approx(area, rel=0.02)


@pytest.mark.parametrize("radius", [1, 3])
def test_closing_only_adds_and_opening_only_takes(radius):
    mask = (torch.rand(3, 1, 33, 21, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    assert (close_holes(mask, radius) >= mask).all() and (drop_specks(mask, radius) <= mask).all()
    for operation in (close_holes, drop_specks):
        once = operation(mask, radius)
        assert torch.equal(operation(once, radius), once)  # doing it again changes nothing
        assert set(once.unique().tolist()) <= {0.0, 1.0}


def test_closing_is_opening_of_the_background():
    mask = (torch.rand(1, 1, 33, 21, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    assert torch.equal(close_holes(mask, 2), 1 - drop_specks(1 - mask, 2))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_full_and_empty_masks_stay_at_the_edge_of_the_picture_too(operation):
    for value in (0.0, 1.0):
        mask = torch.full((1, 1, 9, 12), value)
        torch.testing.assert_close(operation(mask, 3), mask)


@pytest.mark.parametrize("radius", [1, 4, 8])
def test_softening_keeps_the_mean_and_the_half_level_of_an_edge(radius):
    soft = soften(disk(20), radius)
    assert soft.mean().item() == pytest.approx(disk(20).mean().item(), rel=1e-5)
    assert soft.min() >= 0 and soft.max() <= 1
    half = torch.zeros(1, 1, 40, 40)
    half[..., 20:] = 1
    edge = soften(half, radius)
    torch.testing.assert_close(edge + edge.flip(-1), torch.ones_like(edge))  # symmetric about the edge
    assert not edge[..., : 20 - radius].any() and 0 < edge[0, 0, 0, 20 - radius] < 0.5


def test_radius_1_weighs_neighbors_by_a_gaussian_of_half_a_pixel():
    dot = torch.zeros(1, 1, 5, 5)
    dot[..., 2, 2] = 1
    neighbor = math.exp(-(1**2) / (2 * 0.5**2))
    total = 1 + 2 * neighbor
    row = torch.tensor([0, neighbor, 1, neighbor, 0]) / total
    torch.testing.assert_close(soften(dot, 1)[0, 0], row[:, None] * row)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "mask, radius, message",
    [
        (torch.ones(5, 5), 1, r"mask is \(5, 5\), torch.float32; give \(B, 1, H, W\)"),
        (torch.ones(1, 3, 5, 5), 1, r"mask is \(1, 3, 5, 5\)"),
        (torch.ones(1, 1, 5, 5).bool(), 1, "torch.bool; give"),
        (torch.ones(1, 1, 5, 5), -1, "radius is -1; give"),
        (torch.ones(1, 1, 5, 5), 1.5, "radius is 1.5; give"),
    ],
)
def test_other_masks_and_radii_are_refused(operation, mask, radius, message):
    with pytest.raises(ValueError, match=message):
        operation(mask, radius)
