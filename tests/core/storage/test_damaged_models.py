"""A whole file of each kind in which one thing is changed: answered with a ValueError, or read."""

import random
import warnings
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from random_dinov2 import authors_names, random_weights, transformers_names
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from smra_core.encoders.dinov2 import load_dinov2
from smra_core.encoders.dinov2_files import DinoV2Config
from smra_core.encoders.sea_raft import SeaRaft, load_sea_raft
from smra_core.encoders.sea_raft_config import SeaRaftConfig
from smra_core.encoders.sea_raft_files import to_metadata
from smra_core.lora.reader import load_lora
from smra_core.lora.report import describe_lora
from smra_core.standalone.model_files import WanFiles
from smra_core.standalone.umt5 import load_umt5
from smra_core.wan.module_names import to_native_dit_state, to_native_vae_state

ROUNDS = 4
"""Changes of each file, drawn from a fixed seed."""
SIDES = [0, 1, 2, 3, 5, 16, 32, 64]
DTYPES = [
    torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8,
    torch.uint8, torch.int64, torch.bool, torch.complex64,
]  # fmt: skip
CPU = torch.device("cpu")


def random_tensors(module):
    torch.manual_seed(0)
    return {name: torch.rand(value.shape).to(value.dtype) for name, value in module.state_dict().items()}


def lora():
    from_block = {"self_attn.q": (4, 4), "ffn.0": (6, 4)}
    tensors = {}
    for block in range(2):
        for path, (out, inner) in from_block.items():
            module = f"lora_unet_blocks_{block}_{path.replace('.', '_')}"
            tensors |= {f"{module}.lora_down.weight": torch.rand(2, inner)}
            tensors |= {f"{module}.lora_up.weight": torch.rand(out, 2), f"{module}.alpha": torch.tensor(2.0)}
    return tensors, {}


def dit():
    sizes = dict(num_attention_heads=1, attention_head_dim=128, ffn_dim=8, num_layers=1)
    state = to_native_dit_state(random_tensors(WanTransformer3DModel(**sizes, text_dim=4, freq_dim=4)))
    return state | {"blocks.0.ffn.0.scale_weight": torch.ones(())}, {}


def vae():
    return to_native_vae_state(random_tensors(AutoencoderKLWan(base_dim=1, z_dim=16))), {}


def umt5():
    sizes = dict(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2)
    state = random_tensors(UMT5EncoderModel(UMT5Config(**sizes)))
    del state["encoder.embed_tokens.weight"]
    return state | {"spiece_model": torch.ones(9, dtype=torch.uint8)}, {}


def sea_raft():
    config = SeaRaftConfig("x", (1, 1, 1), 4, (4, 4, 4), dim=4, levels=1, radius=1)
    return random_tensors(SeaRaft(config)), to_metadata(config)


def dinov2(dialect):
    config = DinoV2Config(width=32, depth=2, heads=4, hidden=128, gated=False, grid=5, registers=4)
    weights = random_weights(config)
    return RENAMED[dialect](weights, config), {"heads": str(config.heads)}


RENAMED = {
    "timm": lambda weights, config: weights,
    "authors": authors_names,
    "transformers": transformers_names,
}
FILES = {
    "lora": (lora, lambda path: describe_lora(load_lora(path))),
    "dit": (dit, lambda path: WanFiles(path, path, None).load_denoiser(torch.float32, CPU)),
    "vae": (vae, lambda path: WanFiles(path, path, None).load_codec(torch.float32, CPU)),
    "umt5": (umt5, lambda path: load_umt5(path, torch.float32, CPU)),
    "sea_raft": (sea_raft, load_sea_raft),
    "dinov2, timm": (partial(dinov2, "timm"), load_dinov2),
    "dinov2, authors": (partial(dinov2, "authors"), load_dinov2),
    "dinov2, transformers": (partial(dinov2, "transformers"), load_dinov2),
}


def changed(tensors, draw):
    """The tensors with one of them cut, reshaped, retyped, renamed, spoiled or gone, and what was done."""
    tensors, name = dict(tensors), draw.choice(list(tensors))
    value = tensors.pop(name)
    way = draw.choice(["gone", "shape", "shape", "shape", "dtype", "dtype", "name", "value"])
    if way == "shape":
        tensors[name] = torch.ones([draw.choice(SIDES) for _ in range(draw.randrange(5))], dtype=value.dtype)
    elif way == "dtype":
        tensors[name] = value.abs().to(draw.choice(DTYPES))
    elif way == "name":
        others = (f"{name}.weight", name[1:], f"module.{name}", name.replace("0", "1"), "")
        tensors[draw.choice(others)] = value
    elif way == "value" and value.is_floating_point():
        tensors[name] = value * float("nan")
    return tensors, f"{way} of {name}"


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("kind", FILES)
def test_one_change_is_answered(tmp_path, kind, ending):
    make, read = FILES[kind]
    tensors, metadata = make()
    draw, path, refused = random.Random(f"{kind} {ending}"), tmp_path / f"x.{ending}", 0
    for _ in range(ROUNDS):
        damaged, what = changed(tensors, draw)
        damaged = {name: value.contiguous().clone() for name, value in damaged.items()}
        save_file(damaged, path, metadata) if ending == "safetensors" else torch.save(damaged, path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
        except ValueError as error:
            assert 20 < len(str(error)) < 4000, what
            refused += 1
        except Exception as error:
            raise AssertionError(f"{kind}.{ending}, {what}: {error!r}") from error
    assert refused
