"""ComfyUI's own WAN graphs as prompts, with random models and LoRAs in the files that they name."""

import pytest
import random_wan
from random_wan import save_lora
from safetensors.torch import save_file
from saved_graphs import as_prompt, find_node, flatten, is_widget, redirect, schema, use_miniature

TEMPLATES = {"video_wan2_2_14B_i2v": 36, "video_wan2_2_14B_t2v": 16}
"""The host's graphs, and the channels that their experts take."""
FOLDER = "official"
NEWER_NODES = {"ComfySwitchNode", "ComfyMathExpression"}
"""Nodes of these graphs that versions of ComfyUI as old as 0.3.64 lack."""


def open_template(info, template):
    """The prompt of the host's own graph, with a first frame that is there."""
    graph = flatten(template)
    lacking = ({node["type"] for node in graph["nodes"]} & NEWER_NODES) - info.keys()
    if lacking:
        pytest.skip(f"This version of ComfyUI lacks {', '.join(sorted(lacking))} of the official graph.")
    for node in graph["nodes"]:
        if node["type"] in ("SaveVideo", "CreateVideo"):  # a graph may be older than their last widgets
            node["widgets_values"] = fit_values(info[node["type"]], node["widgets_values"][:1])
        elif node["type"] == "LoadImage":
            node["widgets_values"] = ["frame.png", "image"]
        elif node["type"] == "LoadVideo":
            node["widgets_values"] = ["moving.mp4"]
        node["widgets_values"] = node.get("widgets_values") or []
    prompt = as_prompt(info, graph)
    prompt[find_node(prompt, "SaveVideo")]["inputs"]["format"] = "auto"
    return prompt


def fit_values(node, values):
    """As many values as a node of this host has widgets; those that are missing are the defaults."""
    options = [options for _, kind, options in schema(node) if is_widget(kind, options)]
    return [*values, *(each.get("default", "auto") for each in options[len(values) :])]


def make_small(prompt, unet, clip_vision, vae=None):
    """Put small models into the prompt of a graph with one sampler: the file of a DiT, CLIP's features from
    this node, the miniature's encoders, or a VAE from another node in place of its own.
    """
    use_miniature(prompt)
    if vae is not None:
        redirect(prompt, ["mini", 2], vae)
    for name in [name for name, node in prompt.items() if node["class_type"].startswith("CLIPVision")]:
        redirect(prompt, [name, 0], clip_vision)
        del prompt[name]
    prompt[find_node(prompt, "UNETLoader")]["inputs"]["unet_name"] = unet
    prompt[find_node(prompt, "KSampler")]["inputs"]["steps"] = 2  # of 1 step, uni_pc evaluates nothing


def make_files(prompt, models, channels):
    """Random experts in scaled fp8 and random LoRAs of lightx2v, under the names that the graph has."""
    for place, node in enumerate(prompt.values()):
        inputs = node["inputs"]
        for key, kind in (("unet_name", "diffusion_models"), ("lora_name", "loras")):
            if key not in inputs:
                continue
            inputs[key] = f"{FOLDER}/{inputs[key]}"
            file = models / kind / inputs[key]
            file.parent.mkdir(parents=True, exist_ok=True)
            if kind == "loras":
                save_lora(file, ("q", "v", "ffn.2"), place)
            else:
                state = random_wan.dit_state(seed=place, channels=channels)
                save_file(random_wan.quantized(state, "float8_e4m3fn"), file)


def find_experts(prompt):
    """(source of the MODEL that the shift node takes, its file) of each expert; the samplers tell which."""
    found = {}
    for expert, number in (("high", 0), ("low", 1)):
        samplers = [node for node in prompt.values() if node["class_type"] == "KSamplerAdvanced"]
        (sampler,) = (s for s in samplers if s["inputs"]["add_noise"] == ("disable" if number else "enable"))
        shift = prompt[sampler["inputs"]["model"][0]]
        assert shift["class_type"] == "ModelSamplingSD3"
        source = shift["inputs"]["model"]
        unet = prompt[prompt[source[0]]["inputs"]["on_false"][0]]
        found[expert] = source, unet["inputs"]["unet_name"]
    return found
