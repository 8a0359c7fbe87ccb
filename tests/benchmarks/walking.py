"""Do swinging legs carry over from one walking figure to another?

    python -m tests.benchmarks.walking smra_walking

A motion LoRA learns from one clip of the walking robot, with and without MoRA, and is combined with a subject
LoRA of the doll, from two seeds. Each of four videos is read as a doll and as a robot: where its legs are,
and whose looks it has. The LoRAs and a picture stay in the folder; called again, it trains nothing twice.
"""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from smra_core.data.motion_clip import MotionClip, read_motion_clip
from smra_core.data.video import write_video
from smra_core.evaluation.contact_sheet import write_contact_sheet
from smra_core.lora.adapter import Lora
from smra_core.lora.reader import load_lora
from smra_core.lora.schedule import MOTION_STRENGTHS, SUBJECT_STRENGTHS, ScheduledLora
from smra_core.miniature.bench.metrics import PROMPT_BACKGROUNDS, measure_likeness
from smra_core.miniature.bench.parts import measure_parts
from smra_core.miniature.bench.run import Bench, open_bench
from smra_core.miniature.bench.variants import SAMPLING
from smra_core.miniature.small_settings import MOTION, MOTION_TRAINING, SUBJECT, SUBJECT_TRAINING
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from smra_core.miniature.world.gait import read_gait
from smra_core.miniature.world.scenes import WALKING, Scene, render
from smra_core.miniature.world.sprite import FRAMES, SIZE
from smra_core.standalone.generate import Variant, generate
from smra_core.training.job import TrainedLora
from smra_core.training.motion import train_motion
from smra_core.training.subject import train_subject

SEEDS = (0, 1)
REFERENCE = Scene(subject="robot", motion=WALKING, background="navy")
PROMPTS = [Scene(subject="doll", motion=WALKING, background=name).prompt for name in PROMPT_BACKGROUNDS]
ARMS = {"temporal loss alone": replace(MOTION, mora_share=0.0, mora_weight=0.0), "with MoRA": MOTION}


def main() -> None:
    """Train, sample and measure; print a line for each variant, seed and figure."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder for the LoRAs and the picture.")
    bench = open_bench(parser.parse_args().folder)
    clip = read_walk(bench)
    rows = [("reference motion\n" + clip.caption, clip.frames)]
    for seed in SEEDS:
        for name, videos in sample_walks(bench, clip, seed).items():
            rows.append((f"{name}\nseed {seed}", videos[0]))
            for figure in ("doll", "robot"):
                print(f"seed {seed}, {name}, read as a {figure}: {describe(videos, figure)}")
    write_contact_sheet(rows, bench.folder / "walking.png", range(0, FRAMES, 2), PROMPTS[0])


def read_walk(bench: Bench) -> MotionClip:
    """Write the clip of the walking robot to the folder once, and read it as a user's is read."""
    path = bench.folder / "data" / "walk" / "00.mp4"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, render(REFERENCE).frames, SAMPLING.fps)
    return read_motion_clip(path, (SIZE, SIZE), FRAMES, caption=REFERENCE.prompt)


def sample_walks(bench: Bench, clip: MotionClip, seed: int) -> dict[str, Tensor]:
    """Train the LoRAs of a seed; return videos `B F 3 H W` of the doll alone and with each motion LoRA."""
    subject = ScheduledLora(load(bench, train_doll(bench, seed)), SUBJECT_STRENGTHS)
    variants = [Variant("subject alone", "", (subject,))]
    for name, motion in train_walks(bench, clip, seed):
        pair = (subject, ScheduledLora(load(bench, motion), MOTION_STRENGTHS))
        variants.append(Variant(name, "", pair))
    return generate(bench.backend, PROMPTS, variants, replace(SAMPLING, seed=10_000 * (seed + 1)))


def train_doll(bench: Bench, seed: int) -> TrainedLora:
    """Train the subject LoRA of the doll."""
    training = replace(SUBJECT_TRAINING, seed=seed)
    return train_subject(bench.backend, bench.write_images("doll"), DINOV2_FILE, SUBJECT, training, "doll")


def train_walks(bench: Bench, clip: MotionClip, seed: int) -> Iterator[tuple[str, TrainedLora]]:
    """Train the motion LoRA of each arm; yield its name and the LoRA."""
    training = replace(MOTION_TRAINING, seed=seed)
    for name, settings in ARMS.items():
        flow_file = SEA_RAFT_FILE if settings.mora_weight else None
        yield name, train_motion(bench.backend, [clip], flow_file, settings, training, "walk")


def load(bench: Bench, trained: TrainedLora) -> Lora:
    """Load a LoRA from its run's folder."""
    return load_lora(trained.path, bench.backend.spec).lora


def describe(videos: Tensor, figure: str) -> str:
    """Describe how like a figure the videos are, and how its legs swing in each."""
    gaits = [read_gait(video, figure) for video in videos]
    likeness = sum(measure_likeness(video, figure) for video in videos) / len(videos)
    parts = sum(measure_parts(video, figure) for video in videos) / len(videos)
    swings = ", ".join(f"{gait.amplitude:.2f} at {gait.lag:.0f} degrees" for gait in gaits)
    right = sum(gait.is_right for gait in gaits)
    return f"likeness {likeness:.2f}, parts {parts:.2f}, legs right in {right} of {len(gaits)} ({swings})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
