"""ComfyUI's own Wan 2.2 graphs, a subgraph each, with our loaders put in behind the stock ones."""

import json

import pytest
import random_wan
import torch
from official_templates import TEMPLATES, find_experts, make_files, open_template
from PIL import Image
from random_wan import save_lora
from saved_graphs import find_node, redirect, run_for_latents, use_miniature

LORAS = {
    ("subject", "high"): "fox_high_noise",
    ("subject", "low"): "fox_low_noise",
    ("motion", "high"): "run_high_noise",
    ("motion", "low"): "run_low_noise",
}
PROBED = {"subject": "blocks.1.self_attn.k", "motion": "blocks.1.self_attn.o"}
"""Linears that one of our LoRAs is on, and no LoRA of lightx2v here."""
STRENGTHS = {"high": [0.4, 1.0], "low": [0.8, 1.0]}
"""Subject and motion on each expert: the preset `paper`, early and late."""
SHIFT, CLOSE = 5.0, 0.002


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


@pytest.fixture(scope="module")
def files(server):
    """Our LoRAs, and a first frame."""
    loras = server.base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    for place, ((purpose, _), name) in enumerate(LORAS.items()):
        layers = random_wan.SUBJECT_LAYERS if purpose == "subject" else random_wan.MOTION_LAYERS
        save_lora(loras / f"{name}.safetensors", layers, 30 + place)
    (server.base / "input").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (90, 120, 60)).save(server.base / "input" / "frame.png")
    return server.base / "models"


def put_in(prompt, kind, models, log):
    """Put our loaders behind the graph's own, and a probe behind them."""
    experts = find_experts(prompt)
    scheduler = {
        "t_point": "hand-over of the experts", "step": 15, "of_steps": 50, "reference_shift": 1.0,
        "share": 0.3, "sigma": 0.7, "preset": "paper", "run_scheduler": "simple", "run_steps": 20,
    }  # fmt: skip
    ends = {}
    for expert, (source, unet) in experts.items():
        probe = {
            "checkpoint": str(models / "diffusion_models" / unet),
            "loras": json.dumps({
                purpose: (name, str(models / "loras" / f"{LORAS[purpose, expert]}.safetensors"))
                for purpose, name in PROBED.items()
            }),
            "log": f"{log}_{expert}",
        }  # fmt: skip
        redirect(prompt, source, [f"probe_{expert}", 0])
        prompt[f"probe_{expert}"] = {"class_type": "StrengthProbe", "inputs": probe}
        ends[expert] = source
    prompt["schedule"] = {"class_type": "SMRATPointScheduler", "inputs": scheduler}
    if kind == "pair":
        prompt["pair"] = {"class_type": "SMRASparseLoRAPairLoader", "inputs": make_inputs("high")}
        prompt["pair"]["inputs"] |= {f"model_{expert}_noise": source for expert, source in ends.items()}
        for number, expert in enumerate(ends):
            prompt[f"probe_{expert}"]["inputs"]["model"] = ["pair", number]
    else:
        for expert, source in ends.items():
            inputs = make_inputs(expert) | {"model": source}
            prompt[f"single_{expert}"] = {"class_type": "SMRASparseLoRALoader", "inputs": inputs}
            prompt[f"probe_{expert}"]["inputs"]["model"] = [f"single_{expert}", 0]


def make_inputs(expert):
    chosen = {f"{purpose}_lora": f"{LORAS[purpose, expert]}.safetensors" for purpose in PROBED}
    return chosen | {"subject_strength": 1.0, "motion_strength": 1.0, "schedule": ["schedule", 0]}


def read_levels(steps):
    """The noise levels of the scheduler `simple` at this shift, from the formula of the shift."""
    times = [1 - step / steps for step in range(steps)]
    return [SHIFT * time / (1 + (SHIFT - 1) * time) for time in times]


@pytest.mark.parametrize("steps", [20, 4])
@pytest.mark.parametrize("template", TEMPLATES)
def test_our_loaders_in_the_official_graph(server, info, files, templates, template, steps, tmp_path):
    if template not in templates:
        pytest.skip(f"This host has no template {template}.")
    made = {}
    for kind in ("pair", "single"):
        prompt = open_template(info, templates[template])
        make_files(prompt, files, TEMPLATES[template])
        use_miniature(prompt)
        prompt[find_node(prompt, "PrimitiveBoolean")]["inputs"]["value"] = steps == 4
        log = tmp_path / kind
        put_in(prompt, kind, files, log)
        made[kind], _ = run_for_latents(server, prompt, f"{template}_{steps}_{kind}")
        check_log(log, steps)
    assert torch.equal(made["pair"], made["single"])
    assert torch.isfinite(made["pair"]).all() and made["pair"].std() > 0.01


def check_log(log, steps):
    """Check that each expert was evaluated at its half of the levels, with its strengths alone."""
    levels = read_levels(steps)
    for expert, part in (("high", levels[: steps // 2]), ("low", levels[steps // 2 :])):
        lines = [json.loads(line) for line in open(f"{log}_{expert}")]
        seen = sorted({round(line[0], 6) for line in lines}, reverse=True)
        assert seen == pytest.approx(part, abs=CLOSE)
        for line in lines:
            assert line[1:] == pytest.approx(STRENGTHS[expert], abs=0.01), (expert, line)
