"""Whether clips in other colors keep a motion LoRA from bringing the clip's look along.

The LoRA that leaks in `planted` is trained once on its clip, and once on copies of it whose colors are
turned, the same way in all frames of a copy. Both are sampled with the prompts of the leak meter.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...data.color_copies import change_colors
from ...data.motion_clip import MotionClip
from ...encoders.dinov2 import load_dinov2
from ...encoders.sea_raft import load_sea_raft
from ...evaluation.leak_meter import LeakMeter
from ...lora.plan import ALL_LAYERS
from ...standalone.progress_bar import TrainingBar
from ...training.motion import train_motion
from ..small_settings import MOTION, MOTION_TRAINING
from ..weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from ..world.scenes import HELD_OUT_MOTIONS, Scene
from .arm_clips import measure_motion
from .planted import LEAK_PROMPTS, LONG_STEPS, sample_bases, sample_seeds
from .run import Bench, open_bench
from .table import estimate_means

JITTER_FILE = "jitter.jsonl"
COPIES = 8


def run_jitter(folder: Path, pairs: int) -> str:
    """Measure the pairs that are not in the file yet; return means and paired differences."""
    bench, path = open_bench(folder), folder / JITTER_FILE
    done = len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
    for seed in range(done, pairs):
        line = json.dumps({"seed": seed, **measure_pair(bench, seed)})
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    return render_pairs([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def measure_pair(bench: Bench, seed: int) -> dict[str, float]:
    """Return leak and track error of the LoRA of the clip and of the LoRA of its copies, from one seed."""
    motion = HELD_OUT_MOTIONS[seed % len(HELD_OUT_MOTIONS)]
    clip = bench.write_clip(motion)
    meter = LeakMeter(load_dinov2(DINOV2_FILE), load_sea_raft(SEA_RAFT_FILE), clip.frames)
    training = replace(MOTION_TRAINING, steps=LONG_STEPS, seed=seed)
    settings = replace(MOTION, plan=ALL_LAYERS, mora_weight=0.0, mora_share=0.0)
    measured = {}
    for name, clips in (("clip", [clip]), ("copies", make_colored_copies(clip, COPIES, seed))):
        with TrainingBar(f"{motion} {name}") as report:
            trained = train_motion(bench.backend, clips, None, settings, training, name, report)
        videos = list(sample_seeds(bench, trained.path, LEAK_PROMPTS))
        leak = meter.measure(videos, sample_bases(bench, LEAK_PROMPTS))
        scene = Scene(motion=motion)
        errors = [measure_motion(video, scene)["error"] for seed_videos in videos for video in seed_videos]
        measured |= {f"{name} leak": leak.overall.mean, f"{name} error": float(np.mean(errors))}
    return measured


def make_colored_copies(clip: MotionClip, copies: int, seed: int) -> list[MotionClip]:
    """Return copies of a clip in other colors, as clips of their own."""
    (colored,) = change_colors([clip.frames], copies, seed)
    return [
        clip._replace(name=f"{clip.name}-{number}", frames=frames) for number, frames in enumerate(colored)
    ]


def render_pairs(lines: Sequence[dict[str, float]]) -> str:
    """Render means of both LoRAs and of their paired differences, with 95 % intervals over the pairs."""
    rows = ["| | clip | copies in other colors | difference |", "|---|---|---|---|"]
    for column in ("leak", "error"):
        clip, copies = ([line[f"{name} {column}"] for line in lines] for name in ("clip", "copies"))
        cells = [estimate_means(row) for row in (clip, copies, np.subtract(copies, clip))]
        rows.append(f"| {column}, {len(lines)} pairs | {' | '.join(map(str, cells))} |")
    return "\n".join(rows)
