"""Train and measure the arms of the bench; a file keeps a line for every measured clip.

Each LoRA is sampled alone after some numbers of steps, all from the same prompts and the same noise, so that
two arms can be compared clip by clip. A stack whose arms are all in the file is not run again.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ...decoding.wan_decoder import WanVideoDecoder
from ...encoders.sea_raft import load_sea_raft
from ..model_files import MINIATURE_FILES
from ..recipe.stage import cast_where_fast
from ..weight_paths import SEA_RAFT_FILE
from ..world.scenes import Scene
from .arm_clips import decode_clips, sample_stack
from .arm_run import ArmRun, Nets
from .stacked_lora import StackedLora

log = logging.getLogger("smrabooth")
_SAMPLED_AT_ONCE = 64


class Trainings(Protocol):
    """Trainings of one stack of arms."""

    def follow(self, steps: Sequence[int]) -> Iterator[tuple[int, StackedLora]]:
        """Train all runs; yield each of the steps, in rising order, with the LoRAs after it."""
        ...


class ArmKind(NamedTuple):
    """What the arms learn, a motion or a subject, and how it is measured."""

    file: str
    """Name of the file of measured clips."""
    stacks: Sequence[Sequence]
    """Arms that are trained together; those of a stack have the same layers."""
    steps: tuple[int, ...]
    """Steps after which the LoRAs are measured."""
    start: Callable[[Sequence[ArmRun], Path, Nets], Trainings]
    """Start the trainings of a stack; the folder keeps what they need."""
    list_scenes: Callable[[str], list[Scene]]
    """List what the clips of a held-out motion or subject should show."""
    references: tuple[str, ...]
    """Names of the arms that the others are compared with."""
    column: str
    """What is compared."""
    measure: Callable[[Tensor, Scene], dict[str, float]]
    """Measure a clip `F 3 H W` in [0, 1] that should show a scene."""


def run_arms(kind: ArmKind, folder: Path, device: torch.device, processes: int = 8) -> Path:
    """Train and measure all arms of a kind; return the path of the file with a line for each clip.

    `processes` measure clips beside the training.
    """
    nets, path = load_nets(device), folder / kind.file
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, get_context("spawn"), _use_one_thread) as pool:
        for arms in kind.stacks:
            if {arm.name for arm in arms} <= read_finished(path):
                continue
            runs = list_runs(arms)
            trained = kind.start(runs, folder, nets).follow(kind.steps)
            lines = [
                line
                for step, stack in trained
                for line in measure_at(kind, step, sample_runs(kind, runs, stack, nets), pool)
            ]
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def load_nets(device: torch.device) -> Nets:
    """Load the miniature on a device, in float32."""
    denoiser = MINIATURE_FILES.load_denoiser(torch.float32, device)
    decoder = WanVideoDecoder.of(MINIATURE_FILES.load_codec(torch.float32, device).vae)
    return Nets(denoiser, decoder, load_sea_raft(SEA_RAFT_FILE).to(device), device)


def read_finished(path: Path) -> set[str]:
    """Read the names of the arms whose clips are measured; none where there is no file yet."""
    if not path.is_file():
        return set()
    return {json.loads(line)["arm"] for line in path.read_text(encoding="utf-8").splitlines()}


def list_runs(arms: Sequence) -> list[ArmRun]:
    """List the trainings of arms: every case with every seed."""
    return [ArmRun(arm, case, seed) for arm in arms for case in arm.cases for seed in range(arm.seeds)]


Sampled = tuple[ArmRun, np.ndarray, list[Scene]]
"""A run with its clips `C F 3 H W` of bytes, and the scenes that they should show."""


def measure_at(kind: ArmKind, step: int, sampled: Iterable[Sampled], pool: ProcessPoolExecutor) -> list[dict]:
    """Measure the clips of runs after a step; return a dictionary for each clip."""
    waiting = [
        (run, pool.submit(measure_clips, kind.measure, clips, scenes)) for run, clips, scenes in sampled
    ]
    log.info("%s: step %d of %d trainings", waiting[0][0].arm.name, step, len(waiting))
    return [
        {"arm": run.arm.name, "case": run.case, "seed": run.seed, "steps": step, "clip": number}
        | {name: round(value, 4) for name, value in metrics.items()}
        for run, future in waiting
        for number, metrics in enumerate(future.result())
    ]


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def measure_clips(
    measure: Callable[[Tensor, Scene], dict[str, float]], clips: np.ndarray, scenes: Sequence[Scene]
) -> list[dict[str, float]]:
    """Measure clips `C F 3 H W` of bytes that should show the scenes."""
    frames = torch.from_numpy(clips).float() / 255
    return [measure(clip, scene) for clip, scene in zip(frames, scenes, strict=True)]


def sample_runs(kind: ArmKind, runs: Sequence[ArmRun], stack: StackedLora, nets: Nets) -> Iterator[Sampled]:
    """Sample every run's clips, all trainings of one seed from the same noise, each seed from its own."""
    for seed in sorted({run.seed for run in runs}):
        chosen = [index for index, run in enumerate(runs) if run.seed == seed]
        for start in range(0, len(chosen), _SAMPLED_AT_ONCE):
            part = chosen[start : start + _SAMPLED_AT_ONCE]
            yield from _sample_part(kind, [runs[index] for index in part], stack.pick(part), nets, seed)


def _sample_part(
    kind: ArmKind, runs: Sequence[ArmRun], stack: StackedLora, nets: Nets, seed: int
) -> Iterator[Sampled]:
    scenes = [kind.list_scenes(run.case) for run in runs]
    prompts = [[scene.prompt for scene in row] for row in scenes]
    applied = [run.arm.applied for run in runs]
    # Training takes float32; the clips are the larger part of the time of a CPU.
    with cast_where_fast():
        latents = sample_stack(nets.denoiser, stack, prompts, 10_000 * (seed + 1), applied)
        clips = decode_clips(nets.decoder, latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
    yield from zip(runs, clips.numpy(), scenes, strict=True)
