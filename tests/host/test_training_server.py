"""Training through the real server: what a browser sends, and what it gets."""

import csv
import json
import urllib.request

import pytest
import torch
from event_socket import EventSocket
from PIL import Image
from safetensors.torch import load_file, save_file

from smra_core.encoders.dinov2 import DinoV2
from smra_core.encoders.dinov2_files import DinoV2Config
from smra_core.encoders.sea_raft import SeaRaft, save_sea_raft
from smra_core.encoders.sea_raft_config import SEA_RAFT_MINIATURE
from smra_core.video_file import write_video

SIDE, FRAMES = 64, 5
NODES = (
    "SMRATrainSubjectLoRA", "SMRATrainMotionLoRA", "SMRALoadDINOv2", "SMRALoadSEARAFT", "SMRALoadSAM",
    "SMRASegmentSubject", "SMRAPreviewOpticalFlow", "SMRALoadSubjectFolder", "SMRALoadMotionClip",
    "SMRAInspectLoRA",
)  # fmt: skip
TEXT, PICTURE = 3, (1, 4)
"""Kinds of binary events: a line on a node, a preview with and without metadata."""


@pytest.fixture(scope="module")
def studio(server):
    """The server, with data and teachers of random weights in its folders."""
    write_data(server.base / "input")
    write_teachers(server.base / "models")
    return server


def write_data(folder) -> None:
    """Two pictures of a red square with masks and captions, and a clip in which it moves."""
    background = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    clip = background.repeat(FRAMES, 1, 1, 1)
    (folder / "square" / "masks").mkdir(parents=True)
    for i in range(FRAMES):
        clip[i, :, 20:40, 10 + 3 * i : 30 + 3 * i] = torch.tensor([1.0, 0.2, 0.1])[:, None, None]
        mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
        mask[20:40, 10 + 3 * i : 30 + 3 * i] = 255
        if i < 2:
            picture = (clip[i] * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(folder / "square" / f"{i}.png")
            Image.fromarray(mask.numpy()).save(folder / "square" / "masks" / f"{i}.png")
            (folder / "square" / f"{i}.txt").write_text("a sks square")
    write_video(folder / "moving.mp4", clip, 16)


def write_teachers(models) -> None:
    torch.manual_seed(2)
    net = DinoV2(DinoV2Config(width=384, depth=1, heads=6, hidden=64, gated=False, grid=4, registers=0))
    for parameter in net.vit.parameters():
        parameter.data.normal_(std=0.1)
    for folder in ("dinov2", "optical_flow"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    save_file(net.vit.state_dict(), models / "dinov2" / "dino_tiny.safetensors")
    save_sea_raft(SeaRaft(SEA_RAFT_MINIATURE), models / "optical_flow" / "raft_tiny.safetensors")


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def widgets(server, kind: str, **changes) -> dict:
    """All widgets at their defaults, as the browser fills them in."""
    info = server.get(f"/object_info/{kind}")[kind]["input"]
    inputs = {**info["required"], **info.get("optional", {})}
    defaults = {k: spec[1]["default"] for k, spec in inputs.items() if len(spec) > 1 and "default" in spec[1]}
    return defaults | changes


def wan() -> dict:
    return {"wan": node("SMRALoadMiniature")}


def subject_graph(server, **changes) -> dict:
    small = dict(steps=3, rank=2, width=SIDE, height=SIDE, accumulate=1, learning_rate=1e-2)
    values = widgets(server, "SMRATrainSubjectLoRA", **(small | changes))
    size = dict(width=SIDE, height=SIDE)
    return wan() | {
        "data": node("SMRALoadSubjectFolder", clip=["wan", 1], folder="square", caption="", **size),
        "dino": node("SMRALoadDINOv2", file="dinov2/dino_tiny.safetensors"),
        "train": node(
            "SMRATrainSubjectLoRA", model=["wan", 0], vae=["wan", 2], images=["data", 0], masks=["data", 1],
            positive=["data", 2], dinov2=["dino", 0], **values,
        ),
        "plot": node("LossGraphNode", loss=["train", 1], filename_prefix="loss"),
        "text": node("PreviewAny", source=["train", 3]),
    }  # fmt: skip


def motion_graph(server, **changes) -> dict:
    small = dict(steps=2, rank=2, width=SIDE, height=SIDE, accumulate=1, frame_count=FRAMES)
    values = widgets(server, "SMRATrainMotionLoRA", **(small | changes))
    clip = dict(caption="a square is vvt sliding", frame_count=FRAMES, start=0, stride=1)
    size = dict(width=SIDE, height=SIDE)
    return wan() | {
        "data": node("SMRALoadMotionClip", clip=["wan", 1], folder="moving.mp4", **clip, **size),
        "raft": node("SMRALoadSEARAFT", file="optical_flow/raft_tiny.safetensors"),
        "flow": node("SMRAPreviewOpticalFlow", frames=["data", 0], sea_raft=["raft", 0]),
        "train": node(
            "SMRATrainMotionLoRA", model=["wan", 0], vae=["wan", 2], frames=["data", 0],
            positive=["data", 1], sea_raft=["raft", 0], **values,
        ),
        "text": node("PreviewAny", source=["train", 3]),
    }  # fmt: skip


def sampled(model: list) -> dict:
    return {
        "words": node("CLIPTextEncode", clip=["wan", 1], text="a sks square"),
        "empty": node("EmptyHunyuanLatentVideo", width=SIDE, height=SIDE, length=1, batch_size=1),
        "sample": node(
            "KSampler", model=model, positive=["words", 0], negative=["words", 0], latent_image=["empty", 0],
            seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="picture"),
    }  # fmt: skip


def succeeded(entry: dict) -> dict:
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"]["messages"][-1])[:3000]
    return entry


def executed(entry: dict) -> set[str]:
    """Nodes that ran, rather than being taken from the host's cache."""
    messages = entry["status"]["messages"]
    cached = {name for kind, about in messages if kind == "execution_cached" for name in about["nodes"]}
    return set(entry["prompt"][2]) - cached


def logged_steps(server, name: str) -> int:
    """Steps that a run has ever logged."""
    (file,) = (server.base / "output" / "smra" / "runs").glob(f"{name}-*/losses.csv")
    with file.open() as rows:
        return len(list(csv.DictReader(rows)))


def newest_latent(server) -> torch.Tensor:
    files = (server.base / "output").glob("picture*.latent")
    return load_file(max(files, key=lambda file: file.stat().st_mtime_ns))["latent_tensor"]


def listen(server) -> EventSocket:
    return EventSocket(int(server.url.rpartition(":")[2]), "tests")


def received(socket: EventSocket, prompt_id: str) -> dict:
    """Events up to the end of a prompt."""
    seen = {"progress": [], "texts": [], "pictures": 0}
    while True:
        event = socket.next()
        if isinstance(event, dict):
            if event["type"] == "progress":
                seen["progress"].append(event["data"]["value"])
            if event["type"] == "execution_success" and event["data"]["prompt_id"] == prompt_id:
                return seen
        elif event[0] == TEXT:
            seen["texts"].append(event[1][4:].decode(errors="replace"))
        elif event[0] in PICTURE:
            seen["pictures"] += 1


def test_a_subject_is_trained_once_and_its_file_gives_the_picture_that_the_graph_gives(studio):
    socket = listen(studio)
    graph = subject_graph(studio, preview_every=2)
    entry = succeeded(studio.run(graph))
    (file,) = entry["outputs"]["text"]["text"]
    assert (studio.base / "output" / "loras" / file).is_file() and logged_steps(
        studio, "subject-subject"
    ) == 3
    seen = received(socket, entry["prompt"][1])
    socket.close()
    assert (
        seen["progress"][-1] == 3 and seen["pictures"] and any("step 3/3" in text for text in seen["texts"])
    )

    # Another workflow in between makes the host forget the result; the run folder does not.
    succeeded(studio.run(wan() | sampled(["wan", 0])))
    base = newest_latent(studio)
    again = succeeded(studio.run(graph))
    assert "train" in executed(again) and again["outputs"]["text"]["text"] == [file]
    assert logged_steps(studio, "subject-subject") == 3

    apply = node("LoraModelLoader", model=["wan", 0], lora=["train", 0], strength_model=1.0, bypass=False)
    succeeded(studio.run(graph | {"apply": apply} | sampled(["apply", 0])))
    in_graph = newest_latent(studio)
    stock = node("LoraLoaderModelOnly", model=["wan", 0], lora_name=file, strength_model=1.0)
    succeeded(studio.run(wan() | {"lora": stock} | sampled(["lora", 0])))
    assert torch.equal(newest_latent(studio), in_graph) and not torch.equal(in_graph, base)
    assert "not loaded" not in (studio.base / "server.log").read_text().lower()


def test_a_motion_is_trained_and_its_flow_is_shown(studio):
    entry = succeeded(studio.run(motion_graph(studio)))
    assert (
        logged_steps(studio, "motion-motion") == 2 and len(entry["outputs"]["flow"]["images"]) == FRAMES - 1
    )
    (file,) = entry["outputs"]["text"]["text"]
    stock = node("LoraLoaderModelOnly", model=["wan", 0], lora_name=file, strength_model=1.0)
    succeeded(studio.run(wan() | {"lora": stock} | sampled(["lora", 0])))
    report = node("SMRAInspectLoRA", file=file, model=["wan", 0])
    shown = succeeded(studio.run(wan() | {"report": report}))["outputs"]["report"]["text"][0]
    assert "Fits Wan2.1-T2V of" in shown and "ffn.2" in shown and "vvt" not in shown


def test_a_cancelled_run_goes_on_bit_for_bit(studio):
    socket = listen(studio)
    graph = subject_graph(studio, name="stopped", steps=6)
    studio.queue(graph)
    event = socket.next()
    while not (isinstance(event, dict) and event["type"] == "progress" and event["data"]["value"] == 2):
        event = socket.next()
    urllib.request.urlopen(urllib.request.Request(f"{studio.url}/interrupt", b"{}"), timeout=30).close()
    while not (isinstance(event, dict) and event["type"] in ("execution_interrupted", "execution_success")):
        event = socket.next()
    socket.close()
    assert event["type"] == "execution_interrupted"
    (run,) = (studio.base / "output" / "smra" / "runs").glob("subject-stopped-*")
    assert 2 <= int(load_file(run / "state.safetensors")["step"]) < 6 and not (run / "finished").exists()

    succeeded(studio.run(graph))
    resumed = load_file(run / "lora.safetensors")
    run.rename(studio.base / "kept")
    graph["train"]["inputs"]["captions"] = "anew"  # or the host would answer from its cache
    succeeded(studio.run(graph))
    (anew,) = (studio.base / "output" / "smra" / "runs").glob("subject-stopped-*")
    whole = load_file(anew / "lora.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_an_error_tells_the_remedy_in_the_browser(studio):
    entry = studio.run(subject_graph(studio, name="!!!"))
    message = entry["status"]["messages"][-1][1]["exception_message"]
    assert "has no letter or digit. Give one" in message


@pytest.mark.parametrize("name", NODES)
def test_every_input_says_what_it_does_and_every_node_has_a_help_page(studio, name):
    info = studio.get(f"/object_info/{name}")[name]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert not [key for key, spec in inputs.items() if len(spec) < 2 or not spec[1].get("tooltip")]
    page = studio.get(f"/extensions/ComfyUI-SMRABooth/docs/{name}.md", parse=False).decode()
    assert page.startswith("# SMRA ") and all(key in page for key in inputs)
