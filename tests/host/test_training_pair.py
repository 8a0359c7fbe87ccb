"""Wan 2.2's two experts trained in one queue by the workflow as it is shipped, and the files in ComfyUI's
own graph.
"""

import json
from types import SimpleNamespace

import pytest
import random_wan
import torch
from comfyui import PACK
from official_templates import TEMPLATES, find_experts, make_files, open_template
from PIL import Image
from safetensors.torch import load_file, save_file
from saved_graphs import MUTED, as_prompt, find_node, redirect, run_for_latents, use_miniature
from training_prompts import (
    FRAMES,
    SIDE,
    cancel_after_step,
    furnish,
    logged_steps,
    node,
    succeeded,
)

STEPS = 3
WORKFLOWS = {"t2v": "train_wan22_pair", "i2v": "train_wan22_pair_i2v"}
CHANNELS = {"t2v": 16, "i2v": 36}
SHIPPED = {"high": "motion", "low": "subject"}
"""What each expert is trained on, as the workflow is shipped."""
SIZE = dict(width=SIDE, height=SIDE)
SMALL = {
    "SMRALoadSubjectFolder": dict(folder="square", **SIZE),
    "SMRALoadMotionClip": dict(folder="moving.mp4", frame_count=FRAMES, **SIZE),
    "SMRALoadDINOv2": dict(file="dinov2/dino_tiny.safetensors"),
    "SMRALoadSEARAFT": dict(file="optical_flow/raft_tiny.safetensors"),
    "SMRATrainingOptions": dict(accumulate=1, learning_rate=1e-2),
    "SMRATrainSubjectLoRA": dict(steps=STEPS, rank=2, preview_every=1, **SIZE),
    "SMRATrainMotionLoRA": dict(steps=STEPS, rank=2, preview_every=1, frame_count=FRAMES, **SIZE),
    "PrimitiveInt": dict(value=4),
    "LoadImage": dict(image="frame.png"),
}
"""Values in place of those that the workflow is shipped with. Nothing else is changed but files' names."""


@pytest.fixture(scope="module")
def studio(server):
    """The server with data, encoders, a first frame, and two random experts of each kind."""
    furnish(server)
    Image.new("RGB", (SIDE, SIDE), (90, 120, 60)).save(server.base / "input" / "frame.png")
    folder = server.base / "models" / "diffusion_models" / "trained"
    folder.mkdir(parents=True)
    for kind, channels in CHANNELS.items():
        for seed, expert in enumerate(SHIPPED):
            state = random_wan.dit_state(seed=seed, channels=channels)
            save_file(state, folder / f"wan2.2_{kind}_{expert}_noise_14B_fp8_scaled.safetensors")
    return server


def open_workflow(info, kind, both=False):
    """The prompt of the workflow on small files; `both` unmutes the group that trains both on both."""
    graph = json.loads((PACK / "workflows" / f"{WORKFLOWS[kind]}.json").read_text("utf-8"))
    for saved in graph["nodes"]:
        saved["mode"] = 0 if both and saved["mode"] == MUTED else saved["mode"]
    prompt = as_prompt(info, graph)
    for each in prompt.values():
        inputs = each["inputs"]
        inputs |= SMALL.get(each["class_type"], {})
        if each["class_type"] == "UNETLoader":
            inputs["unet_name"] = f"trained/{inputs['unet_name']}"
        elif each["class_type"].startswith("SMRATrain") and "name" in inputs:
            inputs["name"] = inputs["name"].replace("my", kind)
    use_miniature(prompt)
    return prompt


def read_log(server, start=0):
    return (server.base / "server.log").read_text()[start:]


def list_cache(server):
    """(time of writing) of each file of the encoders' results."""
    files = (server.base / "output" / "smra" / "cache").glob("*.safetensors")
    return {file.name: file.stat().st_mtime_ns for file in files}


def list_loras(server, kind):
    """Name of the trained file by purpose and expert."""
    files = (server.base / "output" / "loras").glob(f"{kind}_*_noise_*.safetensors")
    return {tuple(file.name.split("_")[1:3]): file.name for file in files}


@pytest.fixture(scope="module", params=WORKFLOWS)
def trained(studio, request):
    """The workflow canceled in its first training, and queued again to its end."""
    kind, info = request.param, studio.get("/object_info")
    prompt = open_workflow(info, kind)
    cancel_after_step(studio, prompt)
    (run,) = (studio.base / "output" / "smra" / "runs").glob(f"*-{kind}_*_noise-*")
    canceled = int(load_file(run / "state.safetensors")["step"])
    entry = succeeded(studio.run(prompt))
    return SimpleNamespace(kind=kind, info=info, canceled=canceled, entry=entry, cache=list_cache(studio))


def test_one_queue_trains_motion_on_high_noise_and_subject_on_low_noise_and_makes_a_video(studio, trained):
    kind = trained.kind
    assert 1 <= trained.canceled < STEPS
    assert set(list_loras(studio, kind)) == {(purpose, expert) for expert, purpose in SHIPPED.items()}
    for expert, purpose in SHIPPED.items():
        assert logged_steps(studio, f"{purpose}-{kind}_{purpose}_{expert}_noise") == STEPS
        file = studio.base / "output" / "loras" / list_loras(studio, kind)[purpose, expert]
        assert all(tensor.any() for tensor in load_file(file).values())
    assert list((studio.base / "output" / "smrabooth").glob(f"{WORKFLOWS[kind]}_*.webm"))


def test_the_files_run_in_the_hosts_own_graph_by_one_stock_loader_each(studio, trained, templates):
    template = f"video_wan2_2_14B_{trained.kind}"
    if template not in templates:
        pytest.skip(f"This host has no template {template}.")
    loras, made = list_loras(studio, trained.kind), []
    start = len(read_log(studio))
    for strength in (1.0, 0.0):
        prompt = open_template(trained.info, templates[template])
        make_files(prompt, studio.base / "models", TEMPLATES[template])
        use_miniature(prompt)
        prompt[find_node(prompt, "PrimitiveBoolean")]["inputs"]["value"] = True
        for expert, (source, _) in find_experts(prompt).items():
            redirect(prompt, source, [expert, 0])
            name = loras[SHIPPED[expert], expert]
            inputs = dict(model=source, lora_name=name, strength_model=strength)
            prompt[expert] = node("LoraLoaderModelOnly", **inputs)
        made.append(run_for_latents(studio, prompt, f"{trained.kind}_{strength}")[0])
    assert not torch.equal(*made)
    assert "not loaded" not in read_log(studio, start).lower()


@pytest.mark.parametrize("trained", ["t2v"], indirect=True)
def test_both_on_both_experts_encodes_nothing_anew_and_trains_two_more(studio, trained):
    kind, start = trained.kind, len(read_log(studio))
    succeeded(studio.run(open_workflow(trained.info, kind, both=True)))
    both = {(purpose, expert) for purpose in SHIPPED.values() for expert in SHIPPED}
    assert set(list_loras(studio, kind)) == both
    # A clip's latents and its flow; of each of two pictures its latents and its features.
    said = [line for line in read_log(studio, start).splitlines() if "Latents, features and flows" in line]
    assert sorted(line.partition("flows: ")[2] for line in said) == [
        "0 encoded anew, 2 read from the cache.",
        "0 encoded anew, 4 read from the cache.",
    ]
    assert list_cache(studio) == trained.cache
