"""Two blocks of WAN 1.3B at their true shapes, as 16-bit and as scaled fp8 files hold them."""

import math

import pytest
import torch
from random_models import published_dit
from safetensors.torch import save_file

from smra_core.standalone.model_files import WanFiles
from smra_core.wan.module_names import to_native_dit_state
from smra_core.wan.spec import WAN_1_3B

SHAPES = published_dit(WAN_1_3B, blocks=2)
SCALE = 0.25


def is_quantized(name):
    return name.startswith("blocks.") and name.endswith(".weight") and len(SHAPES[name]) == 2


@pytest.fixture(scope="module")
def weights():
    """Multiples of 1/8 up to 1.5, exact in every format; each tensor starts at its own place among them."""
    drawn = torch.randint(-12, 13, (1 << 14,), generator=torch.Generator().manual_seed(0)) / 8
    drawn = drawn.to(torch.float8_e4m3fn)
    drawn = drawn.repeat(2 + max(map(math.prod, SHAPES.values())) // len(drawn))
    return {
        name: drawn[place : place + math.prod(shape)].reshape(shape)
        for place, (name, shape) in enumerate(SHAPES.items())
    }


@pytest.mark.parametrize("kind", ["bf16", "fp8_scaled"])
def test_two_blocks_load_whole(tmp_path, weights, kind):
    dtype = torch.bfloat16 if kind == "bf16" else torch.float8_e4m3fn
    stored = {name: value.to(dtype, copy=True) for name, value in weights.items()}
    if kind == "fp8_scaled":
        scaled = [name for name in stored if is_quantized(name)]
        assert len(scaled) == 2 * 10
        stored |= {name.removesuffix("weight") + "scale_weight": torch.tensor(SCALE) for name in scaled}
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    path = tmp_path / f"wan2.1_t2v_1.3B_{kind}.safetensors"
    save_file(stored, path)
    del stored
    files = WanFiles(path, path, None)
    assert (files.spec.dim, files.spec.ffn, files.spec.blocks) == (WAN_1_3B.dim, WAN_1_3B.ffn, 2)
    loaded = to_native_dit_state(files.load_denoiser(torch.bfloat16, torch.device("cpu")).dit.state_dict())
    assert {name: tuple(value.shape) for name, value in loaded.items()} == SHAPES
    for name in ("blocks.1.ffn.0.weight", "blocks.0.cross_attn.q.weight", "head.modulation"):
        factor = SCALE if kind == "fp8_scaled" and is_quantized(name) else 1
        assert torch.equal(loaded[name].float(), weights[name].float() * factor), name
