"""What each role of a LoRA does to finished videos, beside what it does to predicted velocities.

The layer probe ranks roles by the change of predictions, which takes seconds. The paper measured videos. Here
a LoRA of all layers is sampled with one role alone and with one role at zero, and both rankings are compared.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...evaluation.velocity_change import VelocityChange
from ...lora.adapter import Lora
from ...lora.layer_groups import keep_group, leave_out, list_roles
from ...lora.plan import ALL_LAYERS
from ...lora.reader import load_lora
from ...lora.schedule import ScheduledLora, Strengths
from ...standalone.generate import Variant, generate
from ...wan.flow_matching import sampling_sigmas
from ...wan.sampler import initial_noise
from ..recipe.stage import cast_where_fast
from ..small_settings import MOTION, SUBJECT
from ..world.scenes import HELD_OUT_MOTIONS, HELD_OUT_SUBJECTS, Scene
from .arm_clips import list_motion_scenes, list_subject_scenes, measure_motion, measure_subject
from .run import Bench, Case, open_bench, train_case_motion, train_case_subject
from .variants import SAMPLING

ROLES_FILE = "roles.jsonl"
CLIPS = 4
"""Number of clips of each part of a LoRA."""
VIDEO_SAMPLING = replace(SAMPLING, steps=12, seed=77)
PROBE_STEPS, PROBE_SHIFT = 8, 3.0


class Effect(NamedTuple):
    """What a LoRA is for: the metric that it should change, and the scenes that show it."""

    column: str
    scenes: tuple[Scene, ...]


def run_roles(folder: Path) -> str:
    """Measure the LoRAs that are not in the file yet, one subject or motion at a time; return a table."""
    bench, path = open_bench(folder), folder / ROLES_FILE
    done = {line["lora"] for line in read_lines(path)}
    for name in (*HELD_OUT_SUBJECTS, *HELD_OUT_MOTIONS):
        if name not in done:
            line = json.dumps({"lora": name, **measure_roles(bench, name)})
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
    return render_roles(read_lines(path))


def read_lines(path: Path) -> list[dict]:
    """Read the measured LoRAs; none where there is no file yet."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def measure_roles(bench: Bench, name: str) -> dict[str, dict[str, list[float]]]:
    """Train a LoRA of all layers; return each role's shares (alone, lost without it) of both measures."""
    if name in HELD_OUT_SUBJECTS:
        trained = train_case_subject(
            bench, replace(SUBJECT, plan=ALL_LAYERS, sura_weight=0.0), Case(name, "", 0)
        )
        effect = Effect("likeness", tuple(list_subject_scenes(name)[:CLIPS]))
    else:
        trained = train_case_motion(
            bench, replace(MOTION, plan=ALL_LAYERS, mora_weight=0.0, mora_share=0.0), Case("", name, 0)
        )
        effect = Effect("error", tuple(list_motion_scenes(name, CLIPS)))
    lora = load_lora(trained.path, bench.backend.spec).lora
    return {
        "videos": measure_by_videos(bench, lora, effect),
        "velocity": measure_by_velocity(bench, lora, effect),
    }


def measure_by_videos(bench: Bench, lora: Lora, effect: Effect) -> dict[str, list[float]]:
    """Return each role's shares of the way that the whole LoRA goes from the base model's videos."""
    plans = list_roles(lora)
    parts = {"base": {}, "whole": lora}
    for plan in plans:
        parts |= {f"{plan} alone": keep_group(lora, plan), f"{plan} lost": leave_out(lora, plan)}
    values = {name: sample_part(bench, part, effect) for name, part in parts.items()}
    way = values["whole"] - values["base"]
    reached = {name: (value - values["base"]) / way for name, value in values.items()}
    return {str(plan): [reached[f"{plan} alone"], 1 - reached[f"{plan} lost"]] for plan in plans}


def sample_part(bench: Bench, part: Lora, effect: Effect) -> float:
    """Return the mean of the metric over the videos that a part of a LoRA makes, at strength 1."""
    loras = (ScheduledLora(part, Strengths.from_value(1.0)),) if part else ()
    prompts = [scene.prompt for scene in effect.scenes]
    with cast_where_fast():
        videos = generate(bench.backend, prompts, [Variant("v", "", loras)], VIDEO_SAMPLING)["v"]
    measure = measure_subject if effect.column == "likeness" else measure_motion
    return float(np.mean([measure(*pair)[effect.column] for pair in zip(videos, effect.scenes, strict=True)]))


def measure_by_velocity(bench: Bench, lora: Lora, effect: Effect) -> dict[str, list[float]]:
    """Return each role's shares of the change of predictions, as the layer probe measures them."""
    backend, prompt = bench.backend, effect.scenes[0].prompt
    denoiser = backend.files.load_denoiser(backend.dtype, backend.device)
    change = VelocityChange(denoiser, backend.encode_captions([prompt])[prompt][None])
    noise = initial_noise(VIDEO_SAMPLING, backend.spec.latents)
    change.record(lora, noise, sampling_sigmas(PROBE_STEPS, PROBE_SHIFT).tolist())
    return {
        str(plan): [change(keep_group(lora, plan)), 1 - change(leave_out(lora, plan))]
        for plan in list_roles(lora)
    }


def correlate_ranks(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation, in [-1, 1], of two rows of numbers; equal ones share a rank."""
    return float(np.corrcoef(rank_values(first), rank_values(second))[0, 1])


def rank_values(values: Sequence[float]) -> np.ndarray:
    """Return the rank of each value, from 1; equal ones have the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def render_roles(lines: Sequence[dict]) -> str:
    """Render a Markdown table of both measures, with their rank correlation for each LoRA."""
    roles = list(lines[0]["videos"])
    rows = [f"| LoRA | measured | {' | '.join(roles)} | rank correlation |", "|---" * (len(roles) + 3) + "|"]
    for line in lines:
        for column, name in enumerate(("alone", "lost without it")):
            shares = {each: [line[each][role][column] for role in roles] for each in ("videos", "velocity")}
            for measure, row in shares.items():
                told = f"{correlate_ranks(*shares.values()):.2f}" if measure == "videos" else ""
                cells = " | ".join(f"{share:.0%}" for share in row)
                rows.append(f"| {line['lora']} | {measure}, {name} | {cells} | {told} |")
    return "\n".join(rows)
