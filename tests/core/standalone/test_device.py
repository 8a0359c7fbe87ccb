import pytest
import torch

from smra_core.standalone.device import choose_device, choose_dtype


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_the_gpu_is_chosen_where_there_is_one(no_accelerator, monkeypatch):
    assert choose_device() == torch.device("cpu") == choose_device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="Device 'toaster' cannot be used .*Give auto, cpu"):
        choose_device("toaster")


@pytest.mark.parametrize("bfloat16, expected", [(True, torch.bfloat16), (False, torch.float32)])
def test_the_precision_is_the_best_that_the_device_has(monkeypatch, bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bfloat16)
    assert choose_dtype("auto", torch.device("cuda")) == expected
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
