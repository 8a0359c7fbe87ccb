"""Training on models that take images, through the real server and ComfyUI's own nodes: cancel, resume, and
the file in the graph that the model is sampled with.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import random_wan
import torch
from safetensors.torch import load_file, save_file
from training_prompts import (
    FRAMES,
    SIDE,
    cancel_after_first_step,
    furnish,
    logged_steps,
    motion_graph,
    node,
    succeeded,
)

STEPS = 3
SIZE = dict(width=SIDE, height=SIDE, length=FRAMES, batch_size=1)
ENDS = dict(positive=["data", 1], negative=["data", 1], vae=["wan", 2])
FIRST, CLIP = dict(start_image=["first", 0]), dict(clip_vision_output=["features", 0])


class Served(NamedTuple):
    """A variant, and the node of ComfyUI that makes its conditioning."""

    state: Callable[[], dict[str, torch.Tensor]]
    node: dict


def dit(channels: int = 16) -> dict[str, torch.Tensor]:
    return random_wan.dit_state(blocks=2, ffn=128, channels=channels)


SERVED = {
    "i2v_22": Served(lambda: dit(36), node("WanImageToVideo", **ENDS, **SIZE, **FIRST)),
    "i2v_21": Served(
        lambda: random_wan.add_image_inputs(dit(36)), node("WanImageToVideo", **ENDS, **SIZE, **FIRST, **CLIP)
    ),
    "fun_inpaint": Served(
        lambda: random_wan.add_image_inputs(dit(36)),
        node("WanFunInpaintToVideo", **ENDS, **SIZE, **FIRST, **CLIP),
    ),
    "fun_control": Served(
        lambda: random_wan.add_image_inputs(dit(48), reference=True),
        node("WanFunControlToVideo", **ENDS, **SIZE, **FIRST, **CLIP, control_video=["data", 0]),
    ),
    "vace": Served(
        lambda: random_wan.add_vace(dit()),
        node("WanVaceToVideo", **ENDS, **SIZE, strength=0.8, control_video=["data", 0]),
    ),
}


@pytest.fixture(scope="module")
def studio(server):
    """The server, with the data and a file of each variant in its folders."""
    furnish(server)
    for name, served in SERVED.items():
        save_file(served.state(), server.base / "models" / "diffusion_models" / f"{name}.safetensors")
    return server


def variant_graph(server, kind: str, **changes) -> dict:
    """The motion workflow on a variant, with the clip's own first frame before the training node."""
    graph = motion_graph(server, steps=STEPS, mora_weight=0.0, preview_every=1, **changes)
    del graph["flow"]
    graph["train"]["inputs"] |= {"model": ["unet", 0], "positive": ["image", 0]}
    return graph | {
        "unet": node("UNETLoader", unet_name=f"{kind}.safetensors", weight_dtype="default"),
        "first": node("ImageFromBatch", image=["data", 0], batch_index=0, length=1),
        "features": node("RandomClipVision", seed=1),
        "image": SERVED[kind].node,
    }


def sampled(graph: dict, model: list, prefix: str) -> dict:
    """One step of the sampler on the conditioning that was trained with."""
    parts = {name: graph[name] for name in ("wan", "data", "unet", "first", "features", "image")}
    return parts | {
        "sample": node(
            "KSampler", model=model, positive=["image", 0], negative=["image", 1], latent_image=["image", 2],
            seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    }  # fmt: skip


def latent(server, prefix: str) -> torch.Tensor:
    (file,) = (server.base / "output").glob(f"{prefix}*.latent")
    return load_file(file)["latent_tensor"]


@pytest.mark.parametrize("kind", SERVED)
def test_a_canceled_run_resumes_and_its_file_is_loaded_whole_by_the_stock_loader(studio, kind):
    graph = variant_graph(studio, kind, name=kind)
    cancel_after_first_step(studio, graph)
    (run,) = (studio.base / "output" / "smra" / "runs").glob(f"motion-{kind}-*")
    assert 1 <= int(load_file(run / "state.safetensors")["step"]) < STEPS
    (file,) = succeeded(studio.run(graph))["outputs"]["text"]["text"]
    assert logged_steps(studio, f"motion-{kind}") == STEPS
    resumed = load_file(run / "lora.safetensors")
    assert all(tensor.any() for tensor in resumed.values())

    stock = node("LoraLoaderModelOnly", model=["unet", 0], lora_name=file, strength_model=1.0)
    succeeded(studio.run(sampled(graph, ["unet", 0], f"base_{kind}")))
    succeeded(studio.run(sampled(graph, ["lora", 0], f"lora_{kind}") | {"lora": stock}))
    assert not torch.equal(latent(studio, f"lora_{kind}"), latent(studio, f"base_{kind}"))
    assert "not loaded" not in (studio.base / "server.log").read_text().lower()
