"""The shipped workflows against the schemas of the running host, and the quickstart as shipped."""

import json
from pathlib import Path

import pytest
from comfyui import PACK

GRAPHS = sorted((PACK / "workflows").glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
FRONTEND_ONLY = {"MarkdownNote"}
MODEL_FILES = {"unet_name", "clip_name", "vae_name", "subject_lora", "motion_lora", "file"}
"""What an artist has or has not: any file name is allowed."""


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


def schema(node):
    """(name, type, options) of each input, in the order of the node's widgets and slots."""
    for part in ("required", "optional"):
        for name, spec in node["input"].get(part, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            yield name, kind, options | ({"options": spec[0]} if isinstance(spec[0], list) else {})


def is_widget(kind, options):
    """Whether the page shows an input as a widget; a text with forceInput is only a slot."""
    return kind in WIDGETS and not options.get("forceInput")


def widgets(node, saved):
    """Each widget of a saved node with the value that the host will read for it."""
    values = iter(saved["widgets_values"])
    for name, kind, options in schema(node):
        if is_widget(kind, options):
            yield name, kind, options, next(values)
            if options.get("control_after_generate"):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
    assert next(values, None) is None, f"{saved['type']} has widgets too many"


def real_nodes(graph):
    return [node for node in graph["nodes"] if node["type"] not in FRONTEND_ONLY]


@pytest.fixture(params=GRAPHS, ids=lambda path: path.stem)
def graph(request):
    return json.loads(request.param.read_text("utf-8"))


def test_every_node_is_there_with_its_inputs_in_their_order(info, graph):
    for saved in real_nodes(graph):
        assert saved["type"] in info, saved["type"]
        live = list(schema(info[saved["type"]]))
        slots = [name for name, kind, options in live if not is_widget(kind, options)]
        wanted = slots + [name for name, kind, options in live if is_widget(kind, options)]
        assert [slot["name"] for slot in saved["inputs"]] == wanted, saved["type"]
        live_outputs, outputs = info[saved["type"]]["output"], saved["outputs"]
        assert [out["type"] for out in outputs][: len(live_outputs)] == live_outputs, saved["type"]
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


def as_prompt(info, graph):
    """What the page would queue for this graph."""
    source = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for saved in real_nodes(graph):
        inputs = {name: value for name, _, _, value in widgets(info[saved["type"]], saved)}
        inputs |= {s["name"]: source[s["link"]] for s in saved["inputs"] if s["link"] is not None}
        prompt[str(saved["id"])] = {"class_type": saved["type"], "inputs": inputs}
    return prompt


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
