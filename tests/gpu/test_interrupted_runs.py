"""A run that is canceled on a device and continued."""

import pytest
import torch
from safetensors.torch import load_file

STEPS, CANCELED_AT = 3, 1
TOLERANCE = 0.02
"""Relative difference of two runs on a card, which adds up some sums in an order that changes."""


class Canceled(Exception):
    """What a user's cancel raises."""


def cancel(info):
    """Cancel after a step, as a user interface does."""
    if info.step == CANCELED_AT:
        raise Canceled


@pytest.mark.parametrize("purpose", ["subject", "motion"])
def test_a_canceled_run_continues_where_it_stopped(device, full_float32, make_backend, request, purpose):
    train, seen = request.getfixturevalue(f"train_a_{purpose}"), []
    short = {"frames": 5} if purpose == "motion" else {}
    with pytest.raises(Canceled):
        train(make_backend(device, name="canceled"), STEPS, cancel, **short)
    continued = load_file(
        train(make_backend(device, name="canceled"), STEPS, lambda info: seen.append(info.step), **short)
    )
    whole = load_file(train(make_backend(device, name="whole"), STEPS, **short))
    assert seen == list(range(CANCELED_AT + 1, STEPS + 1))
    assert whole.keys() == continued.keys()
    change = torch.cat([(whole[name] - continued[name]).flatten() for name in whole]).norm()
    length = torch.cat([tensor.flatten() for tensor in whole.values()]).norm()
    assert change <= (0 if device.type == "cpu" else TOLERANCE * length)
