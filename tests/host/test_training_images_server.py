"""Training on every served variant, through the real server and ComfyUI's own nodes: cancel, resume, and the
file in the graph that ComfyUI itself offers for the model. Wan 2.2's pairs are in test_training_pair.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import random_wan
import torch
from official_templates import make_small, open_template
from PIL import Image
from safetensors.torch import load_file, save_file
from saved_graphs import find_node, redirect
from training_prompts import (
    FRAMES,
    SIDE,
    cancel_after_step,
    furnish,
    logged_steps,
    motion_graph,
    node,
    succeeded,
)

STEPS, ACCELERATOR = 3, "few_steps.safetensors"
SIZE = dict(width=SIDE, height=SIDE, length=FRAMES, batch_size=1)
ENDS = dict(positive=["data", 1], negative=["data", 1], vae=["wan", 2])
FIRST, CLIP = dict(start_image=["first", 0]), dict(clip_vision_output=["features", 0])


class Served(NamedTuple):
    """A variant, the node of ComfyUI that makes its conditioning, and ComfyUI's own graph for it."""

    state: Callable[[], dict[str, torch.Tensor]]
    node: dict | None
    """None where the model takes text alone."""
    template: str | None
    """None where the graph has two experts."""
    vae: tuple = ("wan", 2)


def dit(channels: int = 16, **options) -> dict[str, torch.Tensor]:
    return random_wan.dit_state(blocks=2, ffn=128, channels=channels, **options)


SERVED = {
    "t2v": Served(dit, None, "text_to_video_wan"),
    "ti2v_5b": Served(lambda: dit(48, latents=48), None, "video_wan2_2_5B_ti2v", ("vae", 0)),
    "i2v_22": Served(lambda: dit(36), node("WanImageToVideo", **ENDS, **SIZE, **FIRST), None),
    "i2v_21": Served(
        lambda: random_wan.add_image_inputs(dit(36)),
        node("WanImageToVideo", **ENDS, **SIZE, **FIRST, **CLIP),
        "image_to_video_wan",
    ),
    "fun_inpaint": Served(
        lambda: random_wan.add_image_inputs(dit(36)),
        node("WanFunInpaintToVideo", **ENDS, **SIZE, **FIRST, **CLIP),
        "wan2.1_fun_inp",
    ),
    "fun_control": Served(
        lambda: random_wan.add_image_inputs(dit(48), reference=True),
        node("WanFunControlToVideo", **ENDS, **SIZE, **FIRST, **CLIP, control_video=["data", 0]),
        "wan2.1_fun_control",
    ),
    "vace": Served(
        lambda: random_wan.add_vace(dit()),
        node("WanVaceToVideo", **ENDS, **SIZE, strength=0.8, control_video=["data", 0]),
        "video_wan_vace_14B_t2v",
    ),
}


@pytest.fixture(scope="module")
def studio(server):
    """The server, with the data and a file of each variant in its folders."""
    furnish(server)
    Image.new("RGB", (SIDE, SIDE), (90, 120, 60)).save(server.base / "input" / "frame.png")
    (server.base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    random_wan.save_lora(server.base / "models" / "loras" / ACCELERATOR, ("q", "v", "ffn.2"), 1)
    for name, served in SERVED.items():
        save_file(served.state(), server.base / "models" / "diffusion_models" / f"{name}.safetensors")
    return server


def variant_graph(server, kind: str, **changes) -> dict:
    """The motion workflow on a variant, with the clip's own first frame before the training node."""
    graph = motion_graph(server, steps=STEPS, mora_weight=0.0, preview_every=1, **changes)
    del graph["flow"]
    served = SERVED[kind]
    graph["train"]["inputs"] |= {"model": ["unet", 0], "vae": list(served.vae)}
    graph |= {
        "unet": node("UNETLoader", unet_name=f"{kind}.safetensors", weight_dtype="default"),
        "first": node("ImageFromBatch", image=["data", 0], batch_index=0, length=1),
        "features": node("RandomClipVision", seed=1),
        "vae": node("RandomVAEOfWan22"),
    }
    if served.node is not None:
        graph["train"]["inputs"]["positive"] = ["image", 0]
        graph["image"] = served.node
    return graph


def sampled(graph: dict, model: list) -> dict:
    """One step of the sampler on the conditioning that was trained with."""
    parts = {name: graph[name] for name in ("wan", "data", "unet", "first", "features", "image")}
    return parts | {
        "sample": node(
            "KSampler", model=model, positive=["image", 0], negative=["image", 1], latent_image=["image", 2],
            seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
    }  # fmt: skip


def official(server, templates: dict, kind: str, lora: str, strength: float) -> dict:
    """ComfyUI's own graph for the variant with a stock loader behind its DiT, and else as it is offered."""
    template, vae = SERVED[kind].template, list(SERVED[kind].vae)
    prompt = open_template(server.get("/object_info"), templates[template])
    prompt |= {"features": node("RandomClipVision", seed=1), "vae": node("RandomVAEOfWan22")}
    make_small(prompt, f"{kind}.safetensors", ["features", 0], vae if vae[0] == "vae" else None)
    for each in prompt.values():
        if each["class_type"] == "LoraLoader":  # VACE's graph has one for few steps
            each["inputs"]["lora_name"] = ACCELERATOR
    unet = [find_node(prompt, "UNETLoader"), 0]
    redirect(prompt, unet, ["trained", 0])
    inputs = dict(model=unet, lora_name=lora, strength_model=strength)
    return prompt | {"trained": node("LoraLoaderModelOnly", **inputs)}


def run_for_latent(server, prompt: dict, prefix: str) -> torch.Tensor:
    sampler = [find_node(prompt, "KSampler"), 0]
    succeeded(server.run(prompt | {"save": node("SaveLatent", samples=sampler, filename_prefix=prefix)}))
    (file,) = (server.base / "output").glob(f"{prefix}*.latent")
    return load_file(file)["latent_tensor"]


@pytest.mark.parametrize("kind", SERVED)
def test_a_canceled_run_resumes_and_its_file_runs_in_the_hosts_own_graph(studio, templates, kind):
    graph = variant_graph(studio, kind, name=kind)
    cancel_after_step(studio, graph)
    (run,) = (studio.base / "output" / "smra" / "runs").glob(f"motion-{kind}-*")
    assert 1 <= int(load_file(run / "state.safetensors")["step"]) < STEPS
    (file,) = succeeded(studio.run(graph))["outputs"]["text"]["text"]
    assert logged_steps(studio, f"motion-{kind}") == STEPS
    resumed = load_file(run / "lora.safetensors")
    assert all(tensor.any() for tensor in resumed.values())

    if SERVED[kind].template is None:
        stock = node("LoraLoaderModelOnly", model=["unet", 0], lora_name=file, strength_model=1.0)
        prompts = sampled(graph, ["lora", 0]) | {"lora": stock}, sampled(graph, ["unet", 0])
    elif SERVED[kind].template not in templates:
        pytest.skip(f"This host has no template {SERVED[kind].template}.")
    else:
        prompts = [official(studio, templates, kind, file, strength) for strength in (1.0, 0.0)]
    start = len(read_log(studio))
    made = [run_for_latent(studio, prompt, f"{kind}_{place}") for place, prompt in enumerate(prompts)]
    assert not torch.equal(*made) and all(latents.isfinite().all() for latents in made)
    assert "not loaded" not in read_log(studio)[start:].lower()


def read_log(server) -> str:
    return (server.base / "server.log").read_text()
