"""Training workflows as a browser sends them, the data and encoders that they name, and their results."""

import csv
import json
import urllib.request

import random_wan
import torch
from event_socket import EventSocket
from PIL import Image
from safetensors.torch import save_file

from smra_core.data.video import write_video
from smra_core.encoders.dinov2 import DinoV2
from smra_core.encoders.dinov2_files import DinoV2Config
from smra_core.encoders.sea_raft import SeaRaft, save_sea_raft
from smra_core.encoders.sea_raft_config import SEA_RAFT_MINIATURE

SIDE, FRAMES = 64, 5
RANDOM_WAN = "random_wan.safetensors"


def furnish(server) -> None:
    """Put data, encoders and a WAN of random weights into the server's folders, once."""
    if (server.base / "input" / "square").exists():
        return
    write_data(server.base / "input")
    write_encoders(server.base / "models")
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_wan.dit_state(blocks=2, ffn=512), folder / RANDOM_WAN)


def write_data(folder) -> None:
    """Two pictures of a red square with masks and captions, a clip in which it moves, clips of one motion,
    and clips of the square with masks of its frames.
    """
    background = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    clip = background.repeat(FRAMES, 1, 1, 1)
    for place in ("square/masks", "turns/masks/right", "turns/masks/left"):
        (folder / place).mkdir(parents=True)
    for i in range(FRAMES):
        clip[i, :, 20:40, 10 + 3 * i : 30 + 3 * i] = torch.tensor([1.0, 0.2, 0.1])[:, None, None]
        mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
        mask[20:40, 10 + 3 * i : 30 + 3 * i] = 255
        for name, shown in (("right", mask), ("left", mask.flip(1))):
            Image.fromarray(shown.numpy()).save(folder / "turns" / "masks" / name / f"{i}.png")
        if i < 2:
            picture = (clip[i] * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(folder / "square" / f"{i}.png")
            Image.fromarray(mask.numpy()).save(folder / "square" / "masks" / f"{i}.png")
            (folder / "square" / f"{i}.txt").write_text("a sks square")
    write_video(folder / "moving.mp4", clip, 16)
    (folder / "moves").mkdir()
    for name, frames in (("right", clip), ("left", clip.flip(-1))):
        write_video(folder / "moves" / f"{name}.mp4", frames, 16)
        (folder / "moves" / f"{name}.txt").write_text(f"a square is vvt sliding to the {name}")
        write_video(folder / "turns" / f"{name}.mp4", frames, 16)


def write_encoders(models) -> None:
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


def on_random_weights(graph: dict) -> dict:
    """The same workflow on a WAN that nobody trained, read by the host's own loader."""
    unet = node("UNETLoader", unet_name=RANDOM_WAN, weight_dtype="default")
    train = graph["train"]["inputs"] | {"model": ["unet", 0]}
    return graph | {"unet": unet, "train": node(graph["train"]["class_type"], **train)}


OPTIONS = {"training_options": "SMRATrainingOptions", "loss_options": "SMRALossOptions"}


def trainer(server, kind: str, links: dict, values: dict) -> dict:
    """A training node, and the two options nodes with the values that are theirs."""
    graph, values = {}, dict(values)
    for name, options in OPTIONS.items():
        defaults = widgets(server, options)
        graph[name] = node(options, **{key: values.pop(key, value) for key, value in defaults.items()})
    wires = {name: [name, 0] for name in OPTIONS}
    return graph | {"train": node(kind, **links, **wires, **widgets(server, kind, **values))}


def subject_graph(server, **changes) -> dict:
    small = dict(steps=3, rank=2, width=SIDE, height=SIDE, accumulate=1, learning_rate=1e-2)
    links = dict(
        model=["wan", 0], vae=["wan", 2], images=["data", 0], masks=["data", 1], positive=["data", 2],
        dinov2=["dino", 0], captions=["data", 3],
    )  # fmt: skip
    size = dict(width=SIDE, height=SIDE)
    return wan() | trainer(server, "SMRATrainSubjectLoRA", links, small | changes) | {
        "data": node("SMRALoadSubjectFolder", clip=["wan", 1], folder="square", caption="", **size),
        "dino": node("SMRALoadDINOv2", file="dinov2/dino_tiny.safetensors"),
        "plot": node("LossGraphNode", loss=["train", 1], filename_prefix="loss"),
        "text": node("PreviewAny", source=["train", 3]),
    }  # fmt: skip


def motion_graph(server, **changes) -> dict:
    small = dict(steps=2, rank=2, width=SIDE, height=SIDE, accumulate=1, frame_count=FRAMES)
    links = dict(
        model=["wan", 0], vae=["wan", 2], frames=["data", 0], positive=["data", 1], sea_raft=["raft", 0],
    )  # fmt: skip
    clip = dict(caption="a square is vvt sliding", frame_count=FRAMES, start=0, stride=1)
    size = dict(width=SIDE, height=SIDE)
    return wan() | trainer(server, "SMRATrainMotionLoRA", links, small | changes) | {
        "data": node("SMRALoadMotionClip", clip=["wan", 1], folder="moving.mp4", **clip, **size),
        "raft": node("SMRALoadSEARAFT", file="optical_flow/raft_tiny.safetensors"),
        "flow": node("SMRAPreviewOpticalFlow", frames=["data", 0], sea_raft=["raft", 0]),
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


def listen(server) -> EventSocket:
    return EventSocket(int(server.url.rpartition(":")[2]), "tests")


ENDINGS = ("execution_interrupted", "execution_success", "execution_error")
"""Events that end a prompt."""


def cancel_after_step(server, graph: dict, step: int = 1) -> None:
    """Queue a graph, interrupt it after a step, and wait until ComfyUI says that it was."""
    socket = listen(server)
    server.queue(graph)
    event = socket.next()
    while not (isinstance(event, dict) and event["type"] == "progress" and event["data"]["value"] == step):
        event = socket.next()
        assert not (isinstance(event, dict) and event["type"] in ENDINGS), event
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", b"{}"), timeout=30).close()
    while not (isinstance(event, dict) and event["type"] in ENDINGS):
        event = socket.next()
    socket.close()
    assert event["type"] == "execution_interrupted", event
