"""The check of weights finds every value that is not finite, in every dtype that a file may have."""

import pytest
import torch

from smra_core.storage.weight_check import READABLE_FLOATS, check_finite, is_finite

SHAPE = (37, 19)
WITHOUT_INFINITY = torch.float8_e4m3fn
"""A dtype that has NaN but no infinity."""


@pytest.mark.parametrize("dtype", sorted(READABLE_FLOATS, key=str), ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (17, 3), (36, 18)], ids=["first", "middle", "last"])
def test_a_single_bad_value_is_found_wherever_it_lies(dtype, bad, place):
    weight = torch.full(SHAPE, torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
    weight[0] = torch.finfo(dtype).min
    assert is_finite(weight) and is_finite(weight.T[::2])
    weight[place] = float("nan") if dtype == WITHOUT_INFINITY else bad
    assert not is_finite(weight)
    with pytest.raises(ValueError, match="NaN or infinite in the bad one"):
        check_finite({"a good one": torch.ones(2), "the bad one": weight}, "file")


def test_whole_numbers_and_empty_tensors_are_finite():
    assert is_finite(torch.tensor([2**62])) and is_finite(torch.tensor(3, dtype=torch.uint8))
    assert is_finite(torch.ones(0, 4)) and not is_finite(torch.tensor(float("nan")))
