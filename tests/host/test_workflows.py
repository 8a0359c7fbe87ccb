"""The shipped workflows against the schemas of the running host, and the quickstart as shipped."""

import json
from pathlib import Path

import pytest
import random_wan
import torch
from comfyui import PACK
from PIL import Image
from random_wan import save_lora
from safetensors.torch import save_file
from saved_graphs import (
    as_prompt,
    find_node,
    is_widget,
    list_nodes,
    real_nodes,
    redirect,
    run_for_latents,
    schema,
    use_miniature,
    widgets,
)

GRAPHS = sorted((PACK / "workflows").glob("*.json"))
MODEL_FILES = {
    "unet_name", "clip_name", "vae_name", "lora_name", "subject_lora", "motion_lora", "file", "image",
}  # fmt: skip
"""What an artist has or has not: any file name is allowed."""
ANY_TYPE = "COMFY_MATCHTYPE_V3"
"""Type of a slot that takes the type of what is connected, as those of ComfySwitchNode."""
OFFICIAL = {"combine_wan22_i2v": "video_wan2_2_14B_i2v", "combine_wan22_t2v": "video_wan2_2_14B_t2v"}
"""Our workflows and the host's own templates of which they are the settings."""
OUR_LOADERS = {"SMRALoadDINOv2", "SMRALoadSEARAFT", "SMRALoadSAM"}


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


@pytest.fixture(params=GRAPHS, ids=lambda path: path.stem)
def graph(request, info):
    loaded = json.loads(request.param.read_text("utf-8"))
    if request.param.stem in OFFICIAL and "ComfySwitchNode" not in info:
        pytest.skip("This version of ComfyUI lacks ComfySwitchNode, as it lacks the official Wan 2.2 graph.")
    return loaded


def test_every_node_is_there_with_its_inputs_in_their_order(info, graph):
    for saved in real_nodes(graph):
        assert saved["type"] in info, saved["type"]
        live = list(schema(info[saved["type"]]))
        slots = [name for name, kind, options in live if not is_widget(kind, options)]
        wanted = slots + [name for name, kind, options in live if is_widget(kind, options)]
        assert [slot["name"] for slot in saved["inputs"]] == wanted, saved["type"]
        assert [slot["name"] for slot in saved["inputs"] if "widget" not in slot] == slots, saved["type"]
        live_outputs, outputs = info[saved["type"]]["output"], saved["outputs"]
        types = [out["type"] for out in outputs[: len(live_outputs)]]
        expected = [out if kind == ANY_TYPE else kind for out, kind in zip(types, live_outputs, strict=True)]
        assert types == expected, saved["type"]
        # On 0.3.64 SaveWEBM and PreviewImage hand nothing on, on 0.33 their pictures.
        assert not any(out["links"] for out in outputs[len(live_outputs) :]), saved["type"]


def test_every_widget_holds_a_value_it_can_take(info, graph):
    for saved in real_nodes(graph):
        for name, kind, options, value in widgets(info[saved["type"]], saved):
            where = f"{saved['type']}.{name} = {value!r}"
            if kind == "COMBO":
                assert name in MODEL_FILES or value in options["options"], where
            elif kind in ("INT", "FLOAT"):
                assert isinstance(value, int if kind == "INT" else (int, float)), where
                assert options.get("min", value) <= value <= options.get("max", value), where
            else:
                assert isinstance(value, str if kind == "STRING" else bool), where


def list_models(graph):
    """(name, directory, url) of each file that the nodes of a graph name, without the query of the url."""
    return {
        (model["name"], model["directory"], model["url"].partition("?")[0])
        for node in list_nodes(graph)
        if node["type"] not in OUR_LOADERS
        for model in node.get("properties", {}).get("models", [])
    }


def test_files_are_named_and_placed_as_in_the_hosts_own_templates(templates):
    official = {model for graph in templates.values() for model in list_models(graph)}
    for path in GRAPHS:
        ours = list_models(json.loads(path.read_text("utf-8")))
        assert ours <= official, f"{path.stem}: {ours - official}"


def list_settings(graph):
    """What both samplers, the shifts, the frame size and the constants of a Wan 2.2 graph are set to."""
    found = {}
    for node in list_nodes(graph):
        values = node.get("widgets_values")
        if node["type"] == "KSamplerAdvanced":
            noise, leftover = values[0], values[9]
            found.setdefault("sampler", set()).add((noise, *values[5:7], leftover))
        elif node["type"] in ("ModelSamplingSD3", "PrimitiveInt", "PrimitiveBoolean"):
            found.setdefault(node["type"], set()).add(round(float(values[0]), 6))
        elif node["type"] in ("WanImageToVideo", "EmptyHunyuanLatentVideo"):
            found["size"] = values
        elif node["type"] == "LoraLoaderModelOnly":
            found.setdefault("loras", set()).add((values[0], round(values[1], 6)))
        elif node["type"] == "UNETLoader":
            found.setdefault("experts", set()).add(tuple(values))
    return found


@pytest.mark.parametrize("name, official", OFFICIAL.items())
def test_the_settings_of_the_pair_are_those_of_the_hosts_own_graph(templates, name, official):
    if official not in templates:
        pytest.skip(f"This host has no template {official}.")
    ours = list_settings(json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8")))
    wanted = list_settings(templates[official])
    # The steps of the split, 10 and 2, come from T_point in our graph.
    assert wanted.pop("PrimitiveInt") == ours.pop("PrimitiveInt") | {10.0, 2.0}
    assert ours == wanted


FEW = {"SMRATrainSubjectLoRA": 2, "SMRATrainMotionLoRA": 2, "KSampler": 4}
"""Steps in place of those that the quickstart needs to learn something."""


def test_the_quickstart_runs_as_shipped_but_for_its_steps_and_leaves_a_video(server, info):
    graph = json.loads((PACK / "workflows" / "quickstart_miniature.json").read_text("utf-8"))
    prompt = as_prompt(info, graph)
    for node in prompt.values():
        if node["class_type"] in FEW:
            node["inputs"]["steps"] = FEW[node["class_type"]]
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    videos = list((Path(server.base) / "output" / "smrabooth").glob("quickstart_*.webm"))
    assert videos and videos[0].stat().st_size > 1000
    names = {path.name.split("_2_")[0] for path in (Path(server.base) / "output" / "loras").iterdir()}
    assert names >= {"quickstart_ball", "quickstart_zigzag"}


def test_the_grid_runs_as_shipped_but_for_its_steps_and_leaves_nine_videos_and_a_page(server, info):
    prompt = as_prompt(info, json.loads((PACK / "workflows" / "compare_grid.json").read_text("utf-8")))
    for kind in ("SMRATrainSubjectLoRA", "SMRATrainMotionLoRA", "SMRACompareGrid"):
        prompt[find_node(prompt, kind)]["inputs"]["steps"] = 2
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    folder = Path(server.base) / "output" / "smra" / "grids" / "miniature"
    assert len(list((folder / "cells").glob("*.mp4"))) == 9
    assert all((folder / name).stat().st_size > 1000 for name in ("report.html", "wall.mp4", "sheet.png"))


SUBJECT_FILES = {"high": "cat_high_noise.safetensors", "low": "cat_low_noise.safetensors"}
MOTION_FILE = "jump.safetensors"
EARLY, LATE = 0.4, 0.8
"""The preset `paper`, which the workflows use."""


@pytest.fixture(scope="module")
def tiny_pair(server):
    """Files under the names of the pair's workflows: random experts and LoRAs, and a first frame."""
    models = server.base / "models"
    for folder in ("diffusion_models", "loras"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    for name in OFFICIAL:
        graph = json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8"))
        for place, (file, folder, _) in enumerate(sorted(list_models(graph))):
            if folder == "diffusion_models":
                channels = 36 if "i2v" in file else 16
                save_file(random_wan.dit_state(seed=place, channels=channels), models / folder / file)
            elif folder == "loras":
                save_lora(models / folder / file, ("q", "v", "ffn.2"), place)
    for place, file in enumerate(SUBJECT_FILES.values()):
        save_lora(models / "loras" / file, random_wan.SUBJECT_LAYERS, 20 + place)
    save_lora(models / "loras" / MOTION_FILE, random_wan.MOTION_LAYERS, 22)
    (server.base / "input").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (90, 120, 60)).save(server.base / "input" / "example.png")


def make_tiny(prompt, fast):
    """The prompt with the miniature's encoders in place of the large ones, on few pixels."""
    use_miniature(prompt)
    prompt[find_node(prompt, "PrimitiveBoolean")]["inputs"]["value"] = fast
    prompt[find_node(prompt, "SMRASparseLoRAPairLoader")]["inputs"] |= {
        "subject_lora": SUBJECT_FILES["low"], "motion_lora": MOTION_FILE,
    }  # fmt: skip


def with_stock_loaders(prompt):
    """The prompt with ComfyUI's own loaders in place of ours, at the strengths that each expert must have."""
    pair = find_node(prompt, "SMRASparseLoRAPairLoader")
    given = prompt.pop(pair)["inputs"]
    for output, (expert, strength) in enumerate((("high", EARLY), ("low", LATE))):
        model = given[f"model_{expert}_noise"]
        for purpose, file, value in (("s", SUBJECT_FILES[expert], strength), ("m", MOTION_FILE, 1.0)):
            inputs = {"model": model, "lora_name": file, "strength_model": value}
            prompt[f"{expert}{purpose}"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
            model = [f"{expert}{purpose}", 0]
        redirect(prompt, [pair, output], model)


@pytest.mark.parametrize("fast", [False, True], ids=["20 steps", "4 steps"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_the_pair_runs_as_shipped_and_is_stock_loaders_at_the_strengths_of_each_expert(
    server, info, tiny_pair, name, fast
):
    if "ComfySwitchNode" not in info:
        pytest.skip("This version of ComfyUI lacks ComfySwitchNode.")
    steps = 4 if fast else 20
    made = []
    for kind in ("ours", "stock", "none"):
        prompt = as_prompt(info, json.loads((PACK / "workflows" / f"{name}.json").read_text("utf-8")))
        make_tiny(prompt, fast)
        pair, scheduler = (
            find_node(prompt, each) for each in ("SMRASparseLoRAPairLoader", "SMRATPointScheduler")
        )
        if kind == "ours":
            prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": [pair, 2]}}
            prompt["run"] = {"class_type": "PreviewAny", "inputs": {"source": [scheduler, 2]}}
        elif kind == "stock":
            with_stock_loaders(prompt)
        else:
            prompt[pair]["inputs"] |= {"subject_strength": 0.0, "motion_strength": 0.0}
        made.append(run_for_latents(server, prompt, f"{name}_{steps}_{kind}"))
    (ours, entry), (stock, _), (none, _) = made
    assert torch.equal(ours, stock) and (ours - none).abs().max() > 0.01
    (run,), (report,) = (entry["outputs"][each]["text"] for each in ("run", "report"))
    assert f"hand-over of the experts at step {steps // 2} of {steps}, sigma 0.833" in run
    high, _, low = report.partition("low-noise expert:")
    assert SUBJECT_FILES["high"] in high and "strength 0.40" in high
    assert SUBJECT_FILES["low"] in low and "strength 0.80" in low
    assert list((server.base / "output" / "smrabooth").glob(f"{name}_*.webm"))
