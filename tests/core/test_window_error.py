import math

import pytest
import torch
from torch.nn import functional as F

from smra_core.window_error import table, window_errors


class Averaging:
    """Every frame of a latent shows the mean of this latent and of the two before."""

    def step(self, latents, past):
        before = torch.zeros_like(latents[:, :, :2]) if past is None else past[0]
        seen = torch.cat([before, latents], 2)
        shown = F.avg_pool3d(seen, (3, 1, 1), 1)[:, :3].repeat_interleave(4, 2)
        return shown[:, :, 3:] if past is None else shown, (seen[:, :, -2:],)


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return torch.randn(2, 16, 8, 4, 4)


def test_two_latents_of_context_are_all_that_this_decoder_needs(clip):
    reference, predicted = clip
    errors = {error.context: error for error in window_errors(Averaging(), reference, predicted, 2)}
    assert list(errors) == [0, 1, 2, 3, 4]
    assert errors[0].warm > errors[1].warm > 0.1 and errors[1].cold > 0.1
    assert all(errors[context].warm < 1e-5 and errors[context].cold < 1e-5 for context in (2, 3, 4))
    assert math.isnan(errors[0].cold)


def test_a_prediction_that_is_the_reference_has_no_warm_error(clip):
    errors = window_errors(Averaging(), clip[0], clip[0], 2)
    assert all(error.warm < 1e-6 for error in errors) and errors[1].cold > 0.1


def test_the_table_has_a_row_for_each_context(clip):
    rows = table(window_errors(Averaging(), *clip, 2)).splitlines()
    assert len(rows) == 6 and rows[0].split() == ["context", "warm", "cold"] and rows[1].split()[0] == "0"
