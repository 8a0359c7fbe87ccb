import math

import pytest
import torch
from diffusers import AutoencoderKLWan

from smra_core.decoding.wan_decoder import WanVideoDecoder
from smra_core.decoding.window_error import measure_window_errors, render_errors


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(5)
    return WanVideoDecoder.of(AutoencoderKLWan(base_dim=4).requires_grad_(False))


@pytest.fixture
def clip():
    torch.manual_seed(0)
    reference, error = torch.randn(2, 16, 6, 1, 2)
    return reference, reference + 0.2 * error


def test_errors_are_told_by_context_and_vanish_for_the_reference_itself(decoder, clip):
    reference, predicted = clip
    errors = measure_window_errors(decoder, reference, predicted, 1)
    assert [error.context for error in errors] == [0, 1, 2, 3, 4]
    assert all(0.001 < error.warm < error.cold or math.isnan(error.cold) for error in errors)
    assert math.isnan(errors[0].cold)
    same = measure_window_errors(decoder, reference, reference, 1)
    assert all(error.warm < 1e-5 for error in same) and same[1].cold > 0.1


def test_the_table_has_a_row_for_each_context(decoder, clip):
    rows = render_errors(measure_window_errors(decoder, *clip, 2)).splitlines()
    assert rows[0].split() == ["context", "warm", "cold"]
    assert [row.split()[0] for row in rows[1:]] == ["0", "1", "2", "3"]
