import pytest
import torch

from smra_core.training.mask_grid import average_inside, pool_to_latents, pool_to_pairs

FRAMES, SIDE = 9, 32


@pytest.fixture
def mask_px():
    """One masked pixel, in frame 6 alone."""
    mask_px = torch.zeros(FRAMES, 1, SIDE, SIDE)
    mask_px[6, 0, 9, 30] = 1
    return mask_px


def test_a_latent_cell_counts_when_the_mask_touches_it_in_one_of_its_frames(mask_px):
    expected = torch.zeros(1, 3, 4, 4)
    expected[0, 2, 1, 3] = 1  # frames 5 to 8 are latent 2
    assert torch.equal(pool_to_latents(mask_px, (4, 4)), expected)
    assert pool_to_latents(mask_px, (2, 2))[0, 2].tolist() == [[0, 1], [0, 0]]  # cells of 16 pixels
    assert pool_to_latents(mask_px[:1], (4, 4)).shape == (1, 1, 4, 4)


def test_a_pair_of_frames_counts_where_the_mask_touches_either(mask_px):
    pairs = pool_to_pairs(mask_px, (SIDE, SIDE))
    assert pairs.shape == (FRAMES - 1, 1, SIDE, SIDE)
    assert pairs.nonzero().tolist() == [[5, 0, 9, 30], [6, 0, 9, 30]]
    half = pool_to_pairs(mask_px, (SIDE // 2, SIDE // 2))
    assert half.nonzero().tolist() == [[5, 0, 4, 15], [6, 0, 4, 15]]


def test_an_error_is_averaged_over_channels_and_the_masks_cells():
    error = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 1, 2)  # two channels of two cells
    mask = torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2)
    assert average_inside(error, mask).tolist() == [3.0]  # the mean of 2 and 4
    assert (
        average_inside(error, None).tolist() == [2.5] == average_inside(error, torch.ones_like(mask)).tolist()
    )
    assert average_inside(error, torch.zeros_like(mask)).tolist() == [0.0]
