import pytest
import torch

from smra_core.decoding.known_faults import conv3d_wastes_memory


@pytest.mark.parametrize("version, cudnn, dtype, bad", [
    ("2.9.0+cu128", 91002, torch.bfloat16, True),
    ("2.9.1", 91499, torch.float16, True),
    ("2.9.1", 91500, torch.bfloat16, False),
    ("2.9.0", 91002, torch.float32, False),
    ("2.8.0", 91002, torch.bfloat16, False),
    ("2.10.0", 91002, torch.bfloat16, False),
    ("2.9.0+cpu", None, torch.bfloat16, False),
])  # fmt: skip
def test_only_the_bad_combination_is_told(monkeypatch, version, cudnn, dtype, bad):
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    assert conv3d_wastes_memory(dtype) == bad
