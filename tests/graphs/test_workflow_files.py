"""The shipped workflows as files: whole links, named groups, nothing on top of another, a picture each."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from smra_core.miniature.held_out_files import MOTION, REFERENCES

WORKFLOWS = Path(__file__).parents[2] / "workflows"
TITLE_BAR = 30
GRAPHS = sorted(WORKFLOWS.glob("*.json"))
ON_BOTH_HOSTS = {
    "CLIPLoader", "CLIPTextEncode", "EmptyHunyuanLatentVideo", "KSampler", "KSamplerAdvanced", "MarkdownNote",
    "ModelSamplingSD3", "PreviewImage", "SaveImage", "SaveWEBM", "UNETLoader", "VAEDecode", "VAELoader",
}  # fmt: skip
SHIPPED = {
    "quickstart_miniature", "train_subject", "train_motion", "all_in_one", "combine", "combine_wan22_pair",
    "combine_two_samplers", "ablation_grid",
}  # fmt: skip


@pytest.fixture(params=GRAPHS, ids=lambda path: path.stem)
def graph(request):
    return json.loads(request.param.read_text("utf-8"))


def test_all_workflows_are_there():
    assert {path.stem for path in GRAPHS} == SHIPPED


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


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_each_has_a_picture_of_the_same_name(path):
    assert path.with_suffix(".jpg").stat().st_size > 10_000


def test_every_link_joins_two_slots_of_its_type(graph):
    nodes = {node["id"]: node for node in graph["nodes"]}
    seen = set()
    for number, source, out, target, into, kind in graph["links"]:
        output, given = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert number in output["links"] and given["link"] == number
        assert output["type"] == given["type"] == kind
        seen.add(number)
    ends = [slot["link"] for node in graph["nodes"] for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(ends) == sorted(seen) and len(seen) == len(graph["links"])


def test_the_graph_is_laid_out_in_titled_groups(graph):
    assert all(group["title"].strip() and group["title"] != "Group" for group in graph["groups"])
    boxes = [(group["title"], *group["bounding"]) for group in graph["groups"]]
    assert not [(a[0], b[0]) for a, b in combinations(boxes, 2) if overlap(a[1:], b[1:])]


def test_no_node_covers_another(graph):
    boxes = [(n["type"], n["pos"][0], n["pos"][1] - TITLE_BAR, n["size"][0], n["size"][1] + TITLE_BAR)
             for n in graph["nodes"]]  # fmt: skip
    assert not [(a, b) for a, b in combinations(boxes, 2) if overlap(a[1:], b[1:])]


def test_every_node_but_the_notes_lies_in_a_group(graph):
    for node in graph["nodes"]:
        x, y = node["pos"]
        inside = [g for g in graph["groups"] if within(x, y, *node["size"], *g["bounding"])]
        assert node["type"] == "MarkdownNote" or inside, node["type"]


def test_notes_say_what_to_load(graph):
    assert any(node["type"] == "MarkdownNote" and node["widgets_values"][0] for node in graph["nodes"])


def test_only_our_nodes_and_those_of_every_host_are_used(graph):
    kinds = {node["type"] for node in graph["nodes"]}
    assert all(kind in ON_BOTH_HOSTS or kind.startswith("SMRA") for kind in kinds)


def overlap(a, b):
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def within(x, y, width, height, left, top, right, bottom):
    return left <= x and x + width <= left + right and top <= y - TITLE_BAR and y + height <= top + bottom
