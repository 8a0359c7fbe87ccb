"""Train and measure the arms of the bench, many at once; a file keeps a line for every measured clip.

Each LoRA is sampled alone after 25, 50, 100 and 200 steps, all from the same prompts and the same noise, so
that two arms can be compared clip by clip. A stack whose arms are all in the file is not run again.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from ...decoding.wan_decoder import WanVideoDecoder
from ...encoders.sea_raft import load_sea_raft
from ...training.mora import MotionSample
from ...training.motion import prepare_motion
from ..model_files import MINIATURE_FILES
from ..weight_paths import SEA_RAFT_FILE
from ..world.scenes import HELD_OUT_MOTIONS, Scene
from .arm_clips import decode_clips, list_motion_scenes, measure_motion, sample_stack
from .arms import STACKS
from .motion_arms import MotionArm, MotionRun, Nets, StackedMotion
from .run import open_bench

log = logging.getLogger("smrabooth")
ARMS_FILE = "arms.jsonl"
SEEDS = 3
STEPS = (25, 50, 100, 200)
"""Steps after which the LoRAs are measured."""
_SAMPLED_AT_ONCE = 64


def run_arms(folder: Path, device: torch.device, processes: int = 8) -> Path:
    """Train and measure all arms; return the path of the file with a line for each clip.

    `processes` measure clips beside the training.
    """
    samples = encode_references(folder)
    nets, path = load_nets(device), folder / ARMS_FILE
    finished = read_finished(path)
    with ProcessPoolExecutor(processes, get_context("spawn"), _use_one_thread) as pool:
        for arms in STACKS:
            if {arm.name for arm in arms} <= finished:
                continue
            training = StackedMotion(list_runs(arms), samples, nets)
            lines = [line for step in STEPS for line in measure_at(training, step, pool)]
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def load_nets(device: torch.device) -> Nets:
    """Load the miniature on a device, in float32."""
    denoiser = MINIATURE_FILES.load_denoiser(torch.float32, device)
    decoder = WanVideoDecoder.of(MINIATURE_FILES.load_codec(torch.float32, device).vae)
    return Nets(denoiser, decoder, load_sea_raft(SEA_RAFT_FILE).to(device), device)


def encode_references(folder: Path) -> dict[str, MotionSample]:
    """Encode the clips of all held-out motions, on the CPU."""
    bench = open_bench(folder)
    clips = [bench.write_clip(motion) for motion in HELD_OUT_MOTIONS]
    return dict(zip(HELD_OUT_MOTIONS, prepare_motion(bench.backend, clips, SEA_RAFT_FILE), strict=True))


def read_finished(path: Path) -> set[str]:
    """Read the names of the arms whose clips are measured; none where there is no file yet."""
    if not path.is_file():
        return set()
    return {json.loads(line)["arm"] for line in path.read_text(encoding="utf-8").splitlines()}


def list_runs(arms: Sequence[MotionArm], seeds: int = SEEDS) -> list[MotionRun]:
    """List the trainings of arms: every held-out motion with every seed."""
    cases = [(motion, seed) for motion in HELD_OUT_MOTIONS for seed in range(seeds)]
    return [MotionRun(arm, motion, seed) for arm in arms for motion, seed in cases]


def measure_at(training: StackedMotion, step: int, pool: ProcessPoolExecutor) -> list[dict]:
    """Train a stack up to a step, sample all of its LoRAs, and return a dictionary for each clip."""
    while training.step < step:
        training.train_step()
    log.info("step %d of %d trainings", step, len(training.runs))
    waiting = [
        (run, pool.submit(measure_clips, clips, scenes)) for run, clips, scenes in sample_runs(training)
    ]
    return [
        {"arm": run.arm.name, "case": run.motion, "seed": run.seed, "steps": step, "clip": number}
        | {name: round(value, 4) for name, value in metrics.items()}
        for run, future in waiting
        for number, metrics in enumerate(future.result())
    ]


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def measure_clips(clips: np.ndarray, scenes: Sequence[Scene]) -> list[dict[str, float]]:
    """Measure clips `C F 3 H W` of bytes that should show the scenes."""
    frames = torch.from_numpy(clips).float() / 255
    return [measure_motion(clip, scene) for clip, scene in zip(frames, scenes, strict=True)]


def sample_runs(training: StackedMotion) -> Iterator[tuple[MotionRun, np.ndarray, list[Scene]]]:
    """Yield every run with its clips `C F 3 H W` of bytes and the scenes that they should show.

    All trainings of one seed are sampled from the same noise, and each seed from noise of its own.
    """
    for seed in sorted({run.seed for run in training.runs}):
        chosen = [index for index, run in enumerate(training.runs) if run.seed == seed]
        for start in range(0, len(chosen), _SAMPLED_AT_ONCE):
            yield from _sample_part(training, chosen[start : start + _SAMPLED_AT_ONCE], seed)


def _sample_part(
    training: StackedMotion, chosen: list[int], seed: int
) -> Iterator[tuple[MotionRun, np.ndarray, list[Scene]]]:
    nets, runs = training.nets, [training.runs[index] for index in chosen]
    scenes = [list_motion_scenes(run.motion) for run in runs]
    prompts = [[scene.prompt for scene in row] for row in scenes]
    applied = torch.tensor([run.arm.applied for run in runs], device=nets.device)
    stack = training.stack.pick(chosen)
    latents = sample_stack(nets.denoiser, stack, prompts, 10_000 * (seed + 1), applied)
    clips = decode_clips(nets.decoder, latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
    yield from zip(runs, clips.numpy(), scenes, strict=True)
