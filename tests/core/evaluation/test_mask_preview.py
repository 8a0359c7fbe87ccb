import pytest
import torch

from smra_core.mask_preview import DIM, OUTLINE, mask_preview


def halves():
    mask_px = torch.zeros(1, 6, 8)
    mask_px[:, :, :4] = 1
    return torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0)), mask_px


def test_inside_is_untouched_outside_is_grey_and_dark():
    picture, mask_px = halves()
    shown = mask_preview(picture, mask_px, outline_px=0)
    assert torch.equal(shown[:, :, :4], picture[:, :, :4])
    torch.testing.assert_close(shown[:, :, 4:], DIM * picture[:, :, 4:].mean(0).expand(3, -1, -1))


@pytest.mark.parametrize("width", [1, 2])
def test_the_outline_runs_along_the_outer_edge(width):
    picture, mask_px = halves()
    shown = mask_preview(picture, mask_px, width)
    torch.testing.assert_close(
        shown[:, :, 4 : 4 + width], torch.tensor(OUTLINE)[:, None, None].expand(3, 6, width)
    )
    assert torch.equal(shown[:, :, :4], picture[:, :, :4])
    assert torch.equal(shown[:, :, 4 + width :], mask_preview(picture, mask_px, 0)[:, :, 4 + width :])


def test_a_batch_is_shown_picture_by_picture():
    picture, mask_px = halves()
    pictures, masks = torch.stack([picture, 1 - picture]), torch.stack([mask_px, 1 - mask_px])
    shown = mask_preview(pictures, masks)
    for one in range(2):
        assert torch.equal(shown[one], mask_preview(pictures[one], masks[one]))
    assert shown.min() >= 0 and shown.max() <= 1


@pytest.mark.parametrize("shape", [(1, 6, 9), (3, 6, 8), (6, 8)])
def test_a_mask_of_another_grid_is_refused(shape):
    with pytest.raises(ValueError, match="A picture `3 H W` and its mask `1 H W` are needed"):
        mask_preview(torch.zeros(3, 6, 8), torch.zeros(shape))
