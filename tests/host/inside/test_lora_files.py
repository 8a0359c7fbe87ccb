"""Our LoRA files through the host's stock loader: it makes of them the weight change that we mean."""

import pytest
import random_wan
import torch
from smrabooth_pack.smra_core.lora.adapter import init_lora
from smrabooth_pack.smra_core.lora.metadata import LoraMetadata
from smrabooth_pack.smra_core.lora.plan import MOTION, SUBJECT
from smrabooth_pack.smra_core.lora.writer import convert_lora, save_lora
from smrabooth_pack.smra_core.wan.spec import WanSpec

SPEC = WanSpec("tiny", random_wan.BLOCKS, random_wan.DIM, random_wan.FFN, heads=2)
TOLERANCE = 1e-6


@pytest.mark.parametrize("dialect", ["comfyui", "kohya"])
@pytest.mark.parametrize("plan", [SUBJECT, MOTION], ids=["subject", "motion"])
def test_the_stock_loader_makes_our_change_of_every_module(model, loras_folder, plan, dialect):
    import comfy.lora

    import nodes

    lora = init_lora(SPEC, plan, rank=4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    for pair in lora.values():
        pair.b.data.normal_()
        pair.scale = 0.25
    save_lora(loras_folder / "own.safetensors", lora, LoraMetadata("subject", str(plan), 4))
    convert_lora(loras_folder / "own.safetensors", loras_folder / "there.safetensors", dialect)
    (patched,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "there.safetensors", 1.0)
    assert patched.patches.keys() == {f"diffusion_model.{name}.weight" for name in lora}
    for name, pair in lora.items():
        key, delta = f"diffusion_model.{name}.weight", pair.delta().detach()
        found = comfy.lora.calculate_weight(patched.patches[key], torch.zeros_like(delta), key)
        assert delta.std() > 0.01 and (found - delta).abs().max() <= TOLERANCE, name
