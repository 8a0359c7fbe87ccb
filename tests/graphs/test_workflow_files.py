"""The shipped workflows as files: whole links, named groups, nothing on top of another, a picture each."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image
from saved_graphs import flatten, list_nodes, list_subgraphs

from smra_core.data.frame_rate import WAN_FPS
from smra_core.miniature.held_out_files import MOTION, REFERENCES

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "workflows"
TITLE_BAR = 30
GRAPHS = sorted(WORKFLOWS.glob("*.json"))
ON_BOTH_HOSTS = {
    "CLIPLoader", "CLIPTextEncode", "EmptyHunyuanLatentVideo", "ImageFromBatch", "KSampler",
    "KSamplerAdvanced", "LoadImage", "LoraLoaderModelOnly", "MarkdownNote", "ModelSamplingSD3", "PreviewAny",
    "PreviewImage", "PrimitiveBoolean", "PrimitiveFloat", "PrimitiveInt", "SaveImage", "SaveWEBM",
    "UNETLoader", "VAEDecode", "VAELoader", "WanImageToVideo",
}  # fmt: skip
SHIPPED = {
    "quickstart_miniature", "quickstart_miniature.app", "train_subject", "train_subject_clips",
    "train_motion", "train_wan22_pair", "train_wan22_pair_i2v",
    "all_in_one", "combine", "combine_wan22_i2v", "combine_wan22_t2v", "combine_two_samplers",
    "ablation_grid", "compare_grid", "compare_grid_wan22", "measure_loras",
}  # fmt: skip
PAIRS = ("combine_wan22_i2v", "combine_wan22_t2v")
ONLY_ON_NEW_HOSTS = {"ComfySwitchNode"}
"""Nodes that Wan 2.2's graphs share with ComfyUI's own, and that its older versions lack."""
TRAINED_PAIRS = ("train_wan22_pair", "train_wan22_pair_i2v")
ANY = "*"
"""Type of a slot that takes every type, as that of PreviewAny."""
MUTED = 2
"""Mode of a node that the page does not queue."""
FILE_WIDGETS = {
    "UNETLoader": "unet_name", "CLIPLoader": "clip_name", "VAELoader": "vae_name",
    "LoraLoaderModelOnly": "lora_name", "SMRALoadDINOv2": "file", "SMRALoadSEARAFT": "file",
    "SMRALoadSAM": "file",
}  # fmt: skip
"""Loader nodes and their widget with a file's name."""
FOLDERS = {
    "UNETLoader": "diffusion_models", "CLIPLoader": "text_encoders", "VAELoader": "vae",
    "LoraLoaderModelOnly": "loras",
}  # fmt: skip


@pytest.fixture(params=GRAPHS, ids=lambda path: path.stem)
def graph(request):
    return json.loads(request.param.read_text("utf-8"))


def test_all_workflows_are_there():
    assert {path.stem for path in GRAPHS} == SHIPPED


def test_every_node_of_the_pack_is_in_a_workflow():
    ours = re.findall(r'^    "(SMRA\w+)":', (ROOT / "nodes/__init__.py").read_text("utf-8"), re.MULTILINE)
    used = {node["type"] for path in GRAPHS for node in list_nodes(json.loads(path.read_text("utf-8")))}
    assert ours and not set(ours) - used


@pytest.mark.parametrize("name", ["quickstart_miniature", "all_in_one"])
def test_what_both_trainings_make_goes_into_the_loader_and_the_video(name):
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
    kinds = {node["id"]: node["type"] for node in graph["nodes"]}
    joined = {(kinds[source], kinds[target]) for _, source, _, target, _, _ in graph["links"]}
    assert {
        ("SMRATrainSubjectLoRA", "SMRASparseLoRALoader"),
        ("SMRATrainMotionLoRA", "SMRASparseLoRALoader"),
        ("SMRATPointScheduler", "SMRASparseLoRALoader"),
        ("SMRASparseLoRALoader", "KSampler"),
        ("KSampler", "VAEDecode"),
        ("VAEDecode", "SaveWEBM"),
    } <= joined


def test_the_quickstart_loads_nothing_that_is_not_shipped():
    graph = json.loads((WORKFLOWS / "quickstart_miniature.json").read_text("utf-8"))
    loaders = {node["type"] for node in graph["nodes"] if "Load" in node["type"]}
    assert loaders == {"SMRALoadMiniature", "SMRASparseLoRALoader"}


def test_the_quickstarts_caption_is_that_of_the_clip_it_learns():
    graph = json.loads((WORKFLOWS / "quickstart_miniature.json").read_text("utf-8"))
    texts = {node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "CLIPTextEncode"}
    assert REFERENCES[MOTION].prompt in texts


def test_the_app_is_the_quickstart_but_for_what_its_page_shows():
    """After a change of the quickstart, copy it to the app and keep the app's `extra`."""
    quickstart, app = (
        json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
        for name in ("quickstart_miniature", "quickstart_miniature.app")
    )
    extra = app.pop("extra")
    assert quickstart.pop("extra").items() <= extra.items() and quickstart == app
    assert extra["linearMode"] is True


def test_the_app_shows_inputs_and_outputs_that_its_nodes_have():
    graph = json.loads((WORKFLOWS / "quickstart_miniature.app.json").read_text("utf-8"))
    nodes, shown = {node["id"]: node for node in graph["nodes"]}, graph["extra"]["linearData"]
    for number, name, about in shown["inputs"]:
        (slot,) = (slot for slot in nodes[number]["inputs"] if slot["name"] == name)
        assert "widget" in slot and slot["link"] is None and about["description"]
    assert [nodes[number]["type"] for number in shown["outputs"]] == ["SaveWEBM"]


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_each_has_a_square_picture_of_the_same_name(path):
    """The gallery shows them as small squares, where a whole graph cannot be read."""
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.size == (640, 640)
    assert 10_000 < path.with_suffix(".jpg").stat().st_size < 100_000


def test_every_link_joins_two_slots_of_its_type(graph):
    nodes = {node["id"]: node for node in graph["nodes"]}
    seen = set()
    for number, source, out, target, into, kind in graph["links"]:
        output, given = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert number in output["links"] and given["link"] == number
        assert output["type"] == kind and given["type"] in (kind, ANY)
        seen.add(number)
    ends = [slot["link"] for node in graph["nodes"] for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(ends) == sorted(seen) and len(seen) == len(graph["links"])


def test_the_graph_is_laid_out_in_titled_groups(graph):
    for part in (graph, *list_subgraphs(graph)):
        assert all(group["title"].strip() and group["title"] != "Group" for group in part["groups"])
        boxes = [(group["title"], *group["bounding"]) for group in part["groups"]]
        assert not [(a[0], b[0]) for a, b in combinations(boxes, 2) if overlap(a[1:], b[1:])]


def test_no_node_covers_another(graph):
    for part in (graph, *list_subgraphs(graph)):
        boxes = [(n["type"], n["pos"][0], n["pos"][1] - TITLE_BAR, n["size"][0], n["size"][1] + TITLE_BAR)
                 for n in part["nodes"]]  # fmt: skip
        assert not [(a, b) for a, b in combinations(boxes, 2) if overlap(a[1:], b[1:])]


def test_every_node_but_the_notes_lies_in_a_group(graph):
    for part in (graph, *list_subgraphs(graph)):
        for node in part["nodes"]:
            x, y = node["pos"]
            inside = [g for g in part["groups"] if within(x, y, *node["size"], *g["bounding"])]
            assert node["type"] == "MarkdownNote" or inside, node["type"]


RATE_PLACES = {"SaveWEBM": 2, "SMRASaveGridCell": 2, "SMRACompareGrid": 12}
"""Nodes that write videos, and the place of the frame rate among their widgets' values."""
MINIATURE_RATE = 8.0
"""Frames per second of the miniature's videos, slow enough for an eye to follow 17 frames."""


def test_videos_play_at_the_rate_that_clips_are_read_at(graph):
    nodes = list_nodes(graph)
    rates = {n["widgets_values"][RATE_PLACES[n["type"]]] for n in nodes if n["type"] in RATE_PLACES}
    miniature = any(n["type"] == "SMRALoadMiniature" for n in nodes)
    assert rates <= {MINIATURE_RATE if miniature else WAN_FPS}


INPUTS, OUTPUTS = -10, -20
"""Ids that stand for a subgraph's own inputs and outputs in its links."""


def list_folded(paths):
    """(graph, face, subgraph) of each node in these files that is a subgraph."""
    for path in paths:
        graph = json.loads(path.read_text("utf-8"))
        parts = {part["id"]: part for part in list_subgraphs(graph)}
        assert parts.keys() <= {node["type"] for node in graph["nodes"]}, path.stem
        yield from ((graph, node, parts[node["type"]]) for node in graph["nodes"] if node["type"] in parts)


FOLDED = list(list_folded(GRAPHS))


def test_the_pairs_have_one_node_that_combines():
    assert len(FOLDED) == len(PAIRS) == 2
    assert all(part["name"].startswith("Combine subject and motion") for _, _, part in FOLDED)


@pytest.mark.parametrize("graph, face, part", FOLDED, ids=[part["name"] for _, _, part in FOLDED])
def test_every_link_of_a_subgraph_joins_two_slots_of_its_type(graph, face, part):
    nodes, seen = {node["id"]: node for node in part["nodes"]}, set()
    assert not nodes.keys() & {node["id"] for node in graph["nodes"]}, "The page would give them other ids."
    for link in part["links"]:
        if link["origin_id"] == INPUTS:
            output = part["inputs"][link["origin_slot"]]
            assert link["id"] in output["linkIds"]
        else:
            output = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in output["links"]
        if link["target_id"] == OUTPUTS:
            given = part["outputs"][link["target_slot"]]
            assert given["linkIds"] == [link["id"]]
        else:
            given = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert given["link"] == link["id"]
        assert output["type"] == given["type"] == link["type"]
        seen.add(link["id"])
    ends = {slot["link"] for node in part["nodes"] for slot in node["inputs"] if slot["link"] is not None}
    assert ends <= seen and len(seen) == len(part["links"])


@pytest.mark.parametrize("graph, face, part", FOLDED, ids=[part["name"] for _, _, part in FOLDED])
def test_the_face_of_a_subgraph_shows_its_inputs_outputs_and_values(graph, face, part):
    """Old pages queue the value inside, new ones that of the face."""
    for side in ("inputs", "outputs"):
        described = [(slot["name"], slot["type"]) for slot in part[side]]
        assert [(slot["name"], slot["type"]) for slot in face[side]] == described
    nodes, inside = {node["id"]: node for node in part["nodes"]}, []
    for slot, shown in zip(part["inputs"], face["inputs"], strict=True):
        if "widget" in shown:
            (link,) = (link for link in part["links"] if link["id"] in slot["linkIds"])
            node = nodes[link["target_id"]]
            names = [given["name"] for given in node["inputs"] if "widget" in given]
            name = node["inputs"][link["target_slot"]]["name"]
            inside.append(node["widgets_values"][names.index(name)])
    assert face["widgets_values"] == inside and len(inside) >= 6


def test_notes_say_what_to_load(graph):
    assert any(node["type"] == "MarkdownNote" and node["widgets_values"][0] for node in graph["nodes"])


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_only_our_nodes_and_those_of_every_host_are_used(path):
    graph = json.loads(path.read_text("utf-8"))
    kinds = {node["type"] for node in list_nodes(graph)} - {part["id"] for part in list_subgraphs(graph)}
    allowed = ON_BOTH_HOSTS | (ONLY_ON_NEW_HOSTS if path.stem in PAIRS else set())
    assert all(kind in allowed or kind.startswith("SMRA") for kind in kinds)


def test_every_loader_says_where_its_file_is_from(graph):
    """The page offers to download what is missing: it reads name, url and directory of each file."""
    for node in list_nodes(graph):
        if node["type"] not in FILE_WIDGETS:
            continue
        names = [slot["name"] for slot in node["inputs"] if "widget" in slot]
        value = node["widgets_values"][names.index(FILE_WIDGETS[node["type"]])]
        folder, _, name = value.rpartition("/")
        (model,) = node["properties"]["models"]
        assert model["name"] == name and model["url"].startswith("https://")
        assert model["directory"] == (folder or FOLDERS[node["type"]])


@pytest.fixture(params=PAIRS)
def pair(request):
    return flatten(json.loads((WORKFLOWS / f"{request.param}.json").read_text("utf-8")))


def follow(graph, node, name):
    """(node, output) that an input of a node is connected to."""
    links = {link[0]: link for link in graph["links"]}
    nodes = {each["id"]: each for each in graph["nodes"]}
    link = links[next(slot["link"] for slot in node["inputs"] if slot["name"] == name)]
    return nodes[link[1]], nodes[link[1]]["outputs"][link[2]]["name"]


def find_all(graph, kind):
    return [node for node in graph["nodes"] if node["type"] == kind]


def value_of(node):
    return node["widgets_values"][0]


def test_the_pair_is_cut_where_t_point_is(pair):
    (scheduler,) = find_all(pair, "SMRATPointScheduler")
    assert value_of(scheduler) == "hand-over of the experts"
    first, second = find_all(pair, "KSamplerAdvanced")
    for node, name in ((first, "end_at_step"), (second, "start_at_step")):
        source, output = follow(pair, node, name)
        assert (source["type"], output) == ("SMRATPointScheduler", "switch_step")
    steps = {follow(pair, n, name)[0]["id"] for n, name in
             ((first, "steps"), (second, "steps"), (scheduler, "run_steps"))}  # fmt: skip
    assert len(steps) == 1
    assert follow(pair, second, "latent_image")[0] is first


def test_each_expert_goes_its_own_way_from_its_file_to_its_sampler(pair):
    for sampler, expert in zip(find_all(pair, "KSamplerAdvanced"), ("high", "low"), strict=True):
        loader, output = follow(pair, sampler, "model")
        assert loader["type"] == "SMRASparseLoRAPairLoader" and output == f"model_{expert}_noise"
        shift, _ = follow(pair, loader, f"model_{expert}_noise")
        assert shift["type"] == "ModelSamplingSD3" and value_of(shift) == 5.0
        switch, _ = follow(pair, shift, "model")
        plain, (fast, _) = follow(pair, switch, "on_false")[0], follow(pair, switch, "on_true")
        assert f"_{expert}_noise_14B_fp8_scaled" in value_of(plain)
        assert "lightx2v_4steps_lora" in value_of(fast) and f"_{expert}_noise" in value_of(fast)
        assert follow(pair, fast, "model")[0] is plain


def test_one_boolean_turns_20_steps_at_cfg_35_into_4_at_cfg_1(pair):
    (boolean,) = find_all(pair, "PrimitiveBoolean")
    assert value_of(boolean) is False
    switches = find_all(pair, "ComfySwitchNode")
    assert len(switches) == 4 and all(follow(pair, node, "switch")[0] is boolean for node in switches)
    choices = {
        tuple(value_of(follow(pair, node, side)[0]) for side in ("on_false", "on_true")) for node in switches
    }
    assert {(20, 4), (3.5, 1.0)} <= choices


@pytest.fixture(params=TRAINED_PAIRS)
def trained_pair(request):
    return json.loads((WORKFLOWS / f"{request.param}.json").read_text("utf-8"))


def describe_training(graph, node):
    """(purpose, expert) of a training node, from the file of its model; its noise range must be the same."""
    options, _ = follow(graph, node, "training_options")
    unet, noise = follow(graph, node, "model")[0], follow(graph, options, "noise_range")[0]
    (expert,) = (name for name in ("high", "low") if f"_{name}_noise_" in value_of(unet))
    assert noise["type"] == "SMRANoiseRange" and value_of(noise) == f"{expert}-noise expert"
    return node["type"].removeprefix("SMRATrain").removesuffix("LoRA").lower(), expert


def test_motion_is_trained_on_high_noise_and_subject_on_low_and_one_group_adds_the_others(trained_pair):
    nodes = [n for kind in ("Motion", "Subject") for n in find_all(trained_pair, f"SMRATrain{kind}LoRA")]
    described = {describe_training(trained_pair, node): node for node in nodes}
    off = {what for what, node in described.items() if node["mode"] == MUTED}
    assert set(described) - off == {("motion", "high"), ("subject", "low")}
    assert off == {("motion", "low"), ("subject", "high")}
    (group,) = (g for g in trained_pair["groups"] if g["title"].startswith("Both on both experts"))
    inside = [n["id"] for n in trained_pair["nodes"] if within(*n["pos"], *n["size"], *group["bounding"])]
    assert sorted(inside) == sorted(described[what]["id"] for what in off)


def test_each_lora_goes_to_the_expert_it_was_trained_on(trained_pair):
    for sampler, expert in zip(find_all(trained_pair, "KSamplerAdvanced"), ("high", "low"), strict=True):
        loader, _ = follow(trained_pair, sampler, "model")
        shift, _ = follow(trained_pair, loader, "model")
        assert f"_{expert}_noise_14B" in value_of(follow(trained_pair, shift, "model")[0])
        for purpose in ("subject", "motion"):
            training, output = follow(trained_pair, loader, f"{purpose}_lora_model")
            assert output == "lora" and describe_training(trained_pair, training) == (purpose, expert)


def test_both_experts_take_the_same_data_so_that_it_is_encoded_once(trained_pair):
    for kind, names in (("Subject", ("images", "masks", "positive")), ("Motion", ("frames", "positive"))):
        first, second = find_all(trained_pair, f"SMRATrain{kind}LoRA")
        for name in (*names, "vae", "captions"):
            assert follow(trained_pair, first, name) == follow(trained_pair, second, name)
        assert first["widgets_values"] == second["widgets_values"]


def test_an_image_model_is_given_the_clips_own_first_frame():
    graph = json.loads((WORKFLOWS / "train_wan22_pair_i2v.json").read_text("utf-8"))
    for node in find_all(graph, "SMRATrainMotionLoRA"):
        image, output = follow(graph, node, "positive")
        frame, _ = follow(graph, image, "start_image")
        clip, _ = follow(graph, node, "frames")
        assert (image["type"], output) == ("WanImageToVideo", "positive")
        assert frame["type"] == "ImageFromBatch" and frame["widgets_values"] == [0, 1]
        assert follow(graph, frame, "image")[0] is clip is follow(graph, image, "positive")[0]
        _, _, _, *size, _, _, _ = node["widgets_values"]
        assert image["widgets_values"][:3] == size


def overlap(a, b):
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def within(x, y, width, height, left, top, right, bottom):
    return left <= x and x + width <= left + right and top <= y - TITLE_BAR and y + height <= top + bottom
