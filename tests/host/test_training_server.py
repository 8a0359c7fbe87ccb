"""Training through the real server: what a browser sends, and what it gets."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parent))  # where the harness lies
from training_server import Server

SIDE = 64


def host_folder() -> Path | None:
    places = [os.environ.get("COMFYUI_PATH"), "~/comfy/ComfyUI"]
    found = [Path(place).expanduser() for place in places if place]
    return next((place for place in found if (place / "main.py").is_file()), None)


HOST = host_folder()
pytestmark = pytest.mark.skipif(HOST is None, reason="No ComfyUI: set COMFYUI_PATH to its folder")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    write_models(base / "models")
    own = HOST / ".venv" / "bin" / "python"
    running = Server(HOST, os.environ.get("COMFYUI_PYTHON", str(own)), base)
    yield running
    running.stop()


def write_models(models: Path) -> None:
    """A WAN of two blocks, its VAE and both teachers, of random weights, in the names that files have."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from smra_core.encoders.dinov2 import DinoV2
    from smra_core.encoders.dinov2_files import DinoV2Config
    from smra_core.encoders.sea_raft import SeaRaft, save_sea_raft
    from smra_core.encoders.sea_raft_config import SEA_RAFT_MINIATURE
    from smra_core.native_names import native_dit_state, native_vae_state

    for folder in ("diffusion_models", "vae", "dinov2", "optical_flow"):
        (models / folder).mkdir(parents=True)
    torch.manual_seed(0)
    dit = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=128, ffn_dim=128, num_layers=2)
    torch.nn.init.normal_(dit.proj_out.weight, std=0.05)
    save_file(native_dit_state(dit.state_dict()), models / "diffusion_models" / "tiny.safetensors")
    save_file(
        native_vae_state(AutoencoderKLWan(base_dim=8).state_dict()), models / "vae" / "tiny.safetensors"
    )
    net = DinoV2(DinoV2Config(width=384, depth=1, heads=6, hidden=64, gated=False, grid=4, registers=0))
    for parameter in net.vit.parameters():
        parameter.data.normal_(std=0.1)
    save_file(net.vit.state_dict(), models / "dinov2" / "dino_tiny.safetensors")
    save_sea_raft(SeaRaft(SEA_RAFT_MINIATURE), models / "optical_flow" / "raft_tiny.safetensors")


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loaders(frames: int) -> dict:
    return {
        "model": node("UNETLoader", unet_name="tiny.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="tiny.safetensors"),
        "data": node("TestData", frames=frames, shift=0),
    }


def widgets(server: Server, kind: str, **changes) -> dict:
    """All widgets at their defaults, as the browser fills them in."""
    known = server.get(f"/object_info/{kind}")[kind]["input"]
    inputs = {**known["required"], **known.get("optional", {})}
    return {
        name: spec[1]["default"] for name, spec in inputs.items() if len(spec) > 1 and "default" in spec[1]
    } | changes


def subject_graph(server: Server, **changes) -> dict:
    small = dict(steps=3, rank=2, width=SIDE, height=SIDE, accumulate=1, learning_rate=1e-2)
    values = widgets(server, "SMRATrainSubjectLoRA", **small, **changes)
    return loaders(frames=2) | {
        "dino": node("SMRALoadDINOv2", file="dinov2/dino_tiny.safetensors"),
        "train": node(
            "SMRATrainSubjectLoRA", model=["model", 0], vae=["vae", 0], images=["data", 0], masks=["data", 1],
            positive=["data", 2], dinov2=["dino", 0], **values,
        ),
        "plot": node("LossGraphNode", loss=["train", 1], filename_prefix="loss"),
        "text": node("PreviewAny", source=["train", 3]),
    }  # fmt: skip


def motion_graph(server: Server, **changes) -> dict:
    small = dict(steps=2, rank=2, width=SIDE, height=SIDE, accumulate=1, frame_count=5)
    values = widgets(server, "SMRATrainMotionLoRA", **small, **changes)
    return loaders(frames=6) | {
        "raft": node("SMRALoadSEARAFT", file="optical_flow/raft_tiny.safetensors"),
        "flow": node("SMRAPreviewOpticalFlow", frames=["data", 0], sea_raft=["raft", 0]),
        "train": node(
            "SMRATrainMotionLoRA", model=["model", 0], vae=["vae", 0], frames=["data", 0],
            positive=["data", 2], sea_raft=["raft", 0], **values,
        ),
        "plot": node("LossGraphNode", loss=["train", 1], filename_prefix="loss"),
        "text": node("PreviewAny", source=["train", 3]),
    }  # fmt: skip


def sampling_nodes(model: list) -> dict:
    return {
        "sample": node(
            "KSampler", model=model, positive=["data", 2], negative=["data", 2], latent_image=["data", 3],
            seed=1, steps=3, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="picture"),
    }  # fmt: skip


def succeeded(entry: dict) -> dict:
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"]["messages"][-1])[:3000]
    return entry


def run_steps(server: Server, role: str) -> list[int]:
    """Steps logged in each run of a role."""
    files = sorted((server.base / "output" / "smra" / "runs").glob(f"{role}-*/losses.csv"))
    return [len(list(csv.reader(file.open()))) - 1 for file in files]


def newest_latent(server: Server) -> torch.Tensor:
    files = (server.base / "output").glob("picture*.latent")
    return load_file(max(files, key=lambda file: file.stat().st_mtime_ns))["latent_tensor"]


def test_a_subject_is_trained_once_and_its_file_gives_the_picture_that_the_graph_gives(server):
    socket = server.events()
    graph = subject_graph(server, preview_every=2)
    entry = succeeded(server.run(graph))
    (file,) = entry["outputs"]["text"]["text"]
    assert (server.base / "output" / "loras" / file).is_file() and run_steps(server, "subject") == [3]

    # Another workflow in between makes the host forget the result; the run folder does not.
    succeeded(server.run(loaders(frames=1) | sampling_nodes(["model", 0])))
    base = newest_latent(server)
    again = succeeded(server.run(graph))
    assert "train" in server.executed(again) and run_steps(server, "subject") == [3]
    assert again["outputs"]["text"]["text"] == [file]

    in_graph = subject_graph(server, preview_every=2) | {
        "apply": node(
            "LoraModelLoader", model=["model", 0], lora=["train", 0], strength_model=1.0, bypass=False
        )
    }
    succeeded(server.run(in_graph | sampling_nodes(["apply", 0])))
    trained = newest_latent(server)
    stock = node("LoraLoaderModelOnly", model=["model", 0], lora_name=file, strength_model=1.0)
    succeeded(server.run(loaders(frames=1) | {"lora": stock} | sampling_nodes(["lora", 0])))
    assert torch.equal(newest_latent(server), trained) and not torch.equal(trained, base)
    assert "not loaded" not in server.log.read_text().lower()

    seen = received(socket, again["prompt"][1])
    progress = [event["data"]["value"] for event in seen["json"] if event["type"] == "progress"]
    assert (
        {1, 2, 3} <= set(progress)
        and seen["pictures"] >= 1
        and any("step 3/3" in text for text in seen["texts"])
    )


def received(socket, last_prompt: str) -> dict:
    """Events up to the end of a prompt."""
    seen = {"json": [], "texts": [], "pictures": 0}
    while True:
        event = socket.next()
        if isinstance(event, dict):
            seen["json"].append(event)
            if event["type"] == "execution_success" and event["data"]["prompt_id"] == last_prompt:
                socket.close()
                return seen
        elif event[0] == 3:  # text on a node
            seen["texts"].append(event[1][4:].decode(errors="replace"))
        else:
            seen["pictures"] += 1


def test_a_motion_is_trained_and_its_flow_is_shown(server):
    entry = succeeded(server.run(motion_graph(server)))
    assert run_steps(server, "motion") == [2] and len(entry["outputs"]["flow"]["images"]) == 5
    (file,) = entry["outputs"]["text"]["text"]
    stock = node("LoraLoaderModelOnly", model=["model", 0], lora_name=file, strength_model=1.0)
    succeeded(server.run(loaders(frames=1) | {"lora": stock} | sampling_nodes(["lora", 0])))
    report = node("SMRAInspectLoRA", file=file, model=["model", 0])
    shown = succeeded(server.run(loaders(frames=1) | {"report": report}))["outputs"]["report"]["text"][0]
    assert "Fits Wan2.1-T2V of 2 blocks" in shown and "ffn.2" in shown


def test_a_cancelled_run_goes_on_where_it_stopped(server):
    socket = server.events()
    graph = subject_graph(server, name="cancelled", steps=6)
    server.queue(graph)
    while True:
        event = socket.next()
        if isinstance(event, dict) and event["type"] == "progress" and event["data"]["value"] >= 2:
            break
    server.post("/interrupt", {})
    while not (isinstance(event, dict) and event["type"] in ("execution_interrupted", "execution_success")):
        event = socket.next()
    assert event["type"] == "execution_interrupted"
    run = next((server.base / "output" / "smra" / "runs").glob("subject-cancelled-*"))
    saved = int(load_file(run / "state.safetensors")["step"])
    assert 2 <= saved < 6 and not (run / "finished").exists()

    succeeded(server.run(graph))
    first, second = load_file(run / "lora.safetensors"), uninterrupted(server, graph, run)
    assert all(torch.equal(first[name], second[name]) for name in second)
    socket.close()


def uninterrupted(server: Server, graph: dict, run: Path) -> dict:
    """What the same run gives when it starts anew."""
    run.rename(server.base / "kept")
    graph["train"]["inputs"]["preview_every"] = 5  # or the host would answer from its cache
    succeeded(server.run(graph))
    return load_file(run / "lora.safetensors")


def test_an_error_tells_the_remedy_in_the_browser(server):
    entry = server.run(subject_graph(server, name="!!!"))
    message = entry["status"]["messages"][-1][1]["exception_message"]
    assert "has no letter or digit. Give one" in message


def test_every_input_of_every_node_says_what_it_does(server):
    for name, info in server.get("/object_info").items():
        if name.startswith("SMRA"):
            inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
            without = [key for key, spec in inputs.items() if len(spec) < 2 or not spec[1].get("tooltip")]
            assert not without and info["description"], f"{name}: {without}"
