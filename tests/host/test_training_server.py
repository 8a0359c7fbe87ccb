"""Training through the real server: what a browser sends, and what it gets."""

import re

import pytest
import torch
from event_socket import EventSocket
from safetensors import safe_open
from safetensors.torch import load_file
from training_prompts import (
    FRAMES,
    SIDE,
    cancel_after_step,
    executed,
    furnish,
    listen,
    logged_steps,
    motion_graph,
    node,
    sampled,
    subject_graph,
    succeeded,
    wan,
)

NODES = (
    "SMRATrainSubjectLoRA", "SMRATrainMotionLoRA", "SMRALoadDINOv2", "SMRALoadSEARAFT", "SMRALoadSAM",
    "SMRASegmentSubject", "SMRAPreviewOpticalFlow", "SMRALoadSubjectFolder", "SMRALoadSubjectClips",
    "SMRALoadMotionClip",
    "SMRAInspectLoRA", "SMRATrainingOptions", "SMRALossOptions",
    "SMRANoiseRange", "SMRAOptimizerOptions",
)  # fmt: skip
TEXT, PICTURE = 3, (1, 4)
"""Kinds of binary events: a line on a node, a preview with and without metadata."""

ENDINGS = ("execution_interrupted", "execution_success", "execution_error")


@pytest.fixture(scope="module")
def studio(server):
    """The server, with data and encoders of random weights in its folders."""
    furnish(server)
    return server


def newest_latent(server) -> torch.Tensor:
    files = (server.base / "output").glob("picture*.latent")
    return load_file(max(files, key=lambda file: file.stat().st_mtime_ns))["latent_tensor"]


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
    assert seen["progress"][-1] == 3 and seen["pictures"]
    before, after = (
        next(place for place, text in enumerate(seen["texts"]) if words in text)
        for words in ("Training on 2 pictures of 64x64, 16 tokens each: 20 modules", "step 3/3")
    )
    assert before < after

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


def test_clips_of_a_folder_with_their_masks_are_one_subject(studio):
    socket = listen(studio)
    graph = subject_graph(studio, name="turns", as_clip=True, batch_size=2, preview_every=2)
    size = dict(width=SIDE, height=SIDE, frame_count=FRAMES, frame_rate="16 fps", own_sizes=False)
    folder = dict(folder="turns", caption="a sks square")
    graph["data"] = node("SMRALoadSubjectClips", clip=["wan", 1], **folder, **size)
    entry = succeeded(studio.run(graph))
    seen = received(socket, entry["prompt"][1])
    socket.close()
    assert logged_steps(studio, "subject-turns") == 3 and seen["pictures"]
    assert any("Training on 2 clips of up to 5 frames of 64x64, 32 tokens each" in t for t in seen["texts"])
    (file,) = entry["outputs"]["text"]["text"]
    stock = node("LoraLoaderModelOnly", model=["wan", 0], lora_name=file, strength_model=1.0)
    succeeded(studio.run(wan() | {"lora": stock} | sampled(["lora", 0])))
    graph["train"]["inputs"] |= dict(as_clip=False, masks=["other", 0])
    graph["other"] = node("SolidMask", value=1.0, width=SIDE, height=SIDE)
    message = studio.run(graph)["status"]["messages"][-1][1]["exception_message"]
    assert "2 prompts for 10 pictures" in message


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


def test_all_clips_of_a_folder_are_one_motion_with_a_mask_left_out(studio):
    graph = motion_graph(studio, name="two", batch_size=2)
    graph["data"]["inputs"] |= dict(folder="moves", caption="")
    graph["mask"] = node("SolidMask", value=0.0, width=SIDE, height=SIDE)
    graph["logo"] = node("SolidMask", value=1.0, width=SIDE // 4, height=SIDE)
    place = dict(x=0, y=0, operation="add")
    graph["edge"] = node("MaskComposite", destination=["mask", 0], source=["logo", 0], **place)
    graph["train"]["inputs"] |= dict(exclude=["edge", 0], captions=["data", 2])
    entry = succeeded(studio.run(graph))
    # The flow of each clip is drawn, because a node that takes no list runs once for each.
    assert len(entry["outputs"]["flow"]["images"]) == 2 * (FRAMES - 1)
    assert logged_steps(studio, "motion-two") == 2
    (run,) = (studio.base / "output" / "smra" / "runs").glob("motion-two-*")
    with safe_open(run / "lora.safetensors", "pt") as file:
        assert "sliding to the left" in str(file.metadata()) and "sliding to the right" in str(
            file.metadata()
        )
    graph["train"]["inputs"]["exclude"] = ["logo", 0]
    graph["logo"]["inputs"]["width"] = SIDE
    message = studio.run(graph)["status"]["messages"][-1][1]["exception_message"]
    assert "mask of clip 1 excludes all of the clip" in message


def test_a_canceled_run_goes_on_bit_for_bit(studio):
    # ComfyUI leaves out reports less than 0.1 s apart, which these steps may be, but none with a preview.
    graph = subject_graph(studio, name="stopped", steps=6, preview_every=1)
    cancel_after_step(studio, graph, 2)
    (run,) = (studio.base / "output" / "smra" / "runs").glob("subject-stopped-*")
    assert 2 <= int(load_file(run / "state.safetensors")["step"]) < 6 and not (run / "finished").exists()

    succeeded(studio.run(graph))
    resumed = load_file(run / "lora.safetensors")
    run.rename(studio.base / "kept")
    graph["train"]["inputs"]["preview_every"] = 1000  # or ComfyUI would answer from its cache
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
    # The browser takes a page's relative pictures from the folder of the pages.
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", page):
        content = studio.get(f"/extensions/ComfyUI-SMRABooth/docs/{picture}", parse=False)
        assert content.startswith(b"\xff\xd8")  # a JPEG
