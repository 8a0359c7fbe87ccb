"""What a training step takes, measured in one run: CPU time of a small one, or a GPU's time at paper size.

    python -m tests.benchmarks.motion_step_time [case ...] [--rounds 3] [--device cpu]

On the CPU: the real widths of WAN, its VAE and SEA-RAFT M, random weights, float32, one thread, and the
process's own time, which a busy machine still stretches by a quarter. The cases take turns, and the median
of each is given. The DiT has few blocks; to a step are added, as often as blocks are missing, the seconds
that one of them adds to a plain step. All of the paper's motion step is made smaller alike: flow at half of
the frames' size, windows of a quarter of the pairs. Yet parts weigh otherwise than at the paper's size:
attention over a few tokens is nearly free, so the decoder weighs more. The ratios are of the size that is
printed. The subject step has the paper's size.

On CUDA (the default where there is one): the paper's size, all blocks, bfloat16, time by CUDA events, and the
measured peak above what was held before, the weights. Written without a GPU at hand: it never ran on one.

Forward and backward passes alone are timed: no optimizer, no reading of data.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import NamedTuple

import torch

from smra_core.decoding.fast_conv3d import with_fast_layers
from smra_core.encoders.sea_raft_config import SEA_RAFT_M, SeaRaftConfig
from smra_core.training.mora import MotionSettings
from smra_core.training.sura import SubjectSettings
from smra_core.wan.spec import WAN_1_3B, latent_frames
from tests.benchmarks.motion_step import BF16, CASES, FEW_BLOCKS, SUBJECT_CASES, Step

SMALL = MotionSettings(width=64, height=64, frames=17, window=1)
"""Five latents and 16 pairs: a window shows a quarter of the pairs, as at the paper's size."""
SMALL_FLOW = replace(SEA_RAFT_M, levels=2)
"""With so few correlation levels that half of 64 pixels is enough."""
ADDED = 4
"""Blocks by which a plain step is made longer, to see what one of them adds."""


class Place(NamedTuple):
    """Where steps run, and how large."""

    device: torch.device
    dtype: torch.dtype
    motion: MotionSettings
    flow: SeaRaftConfig
    blocks: int

    @property
    def missing(self):
        """Blocks of the DiT that a timed step lacks."""
        return WAN_1_3B.blocks - self.blocks

    def step(self, more=0):
        step = Step(self.motion, self.blocks + more, self.device, self.dtype, self.flow)
        if self.device.type == "cpu":
            with_fast_layers(step.vae)  # or one graph would stand for float32's slow conv3d
        return step


class Took(NamedTuple):
    seconds: float
    peak: int
    """Bytes above what was there before; 0 where it is not measured."""


def place_on(device):
    if device.type == "cuda":
        return Place(device, BF16, MotionSettings(), SEA_RAFT_M, WAN_1_3B.blocks)
    return Place(device, torch.float32, SMALL, SMALL_FLOW, FEW_BLOCKS)


def took(step, device):
    """What one step takes; None when the device's memory is not enough."""
    if device.type != "cuda":
        started = time.process_time()
        step()
        return Took(time.process_time() - started, 0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        start.record()
        step()
        end.record()
    except torch.cuda.OutOfMemoryError:
        return None
    torch.cuda.synchronize(device)
    return Took(start.elapsed_time(end) / 1000, torch.cuda.max_memory_allocated(device) - before)


def rounds(steps, number, device):
    """All steps in turn, `number` times: the median of each, its lowest and its highest."""
    seen = {name: [] for name in steps}
    for turn in range(number):
        for name, step in steps.items():
            seen[name].append(took(step, device))
            print(f"{turn + 1} of {number}, {name}: {seen[name][-1]}", file=sys.stderr, flush=True)
    return {name: sorted(filter(None, all_)) for name, all_ in seen.items()}


def motion_steps(place, wanted):
    """A function that runs a step, for each case; with few blocks plain steps with more of them, too."""
    step = place.step()
    names = [name for name in CASES if name == "plain" or name in wanted]
    steps = {name: CASES[name][1](step) for name in names}
    if place.missing:
        more = place.step(ADDED)
        steps["plain, with more blocks"] = more.motion()
        if "naive" in names:
            steps["kept"], steps["kept, with more blocks"] = (
                some.motion(checkpoint=False) for some in (step, more)
            )
    return steps


def subject_steps(place):
    step = place.step()
    steps = {name: make(step) for name, (_, make) in SUBJECT_CASES.items()}
    if place.missing:
        steps["region, with more blocks"] = place.step(ADDED).subject(aligned=False)
    return steps


def table(cases, base, seen, place):
    """Times and ratios to the base; with all blocks where a step lacks some."""
    middle = {name: statistics.median(t.seconds for t in all_) for name, all_ in seen.items() if all_}
    head = f"| mode | s | lowest to highest | / {base} |"
    head += f" s, {WAN_1_3B.blocks} blocks | / {base} |" if place.missing else " peak above the weights, GB |"
    lines = [head, "|---" * head.count(" |") + "|"]
    whole_base = middle[base] + place.missing * block_seconds(base, middle)
    for name in (name for name in cases if name in seen):
        if name not in middle:
            lines.append(f"| {name} | out of memory |")
            continue
        lowest, highest = seen[name][0], seen[name][-1]
        line = f"| {name} | {middle[name]:.2f} | {lowest.seconds:.2f} to {highest.seconds:.2f} | "
        line += f"{middle[name] / middle[base]:.3f} | "
        if place.missing:
            whole = middle[name] + place.missing * block_seconds("kept" if name == "naive" else base, middle)
            line += f"{whole:.1f} | {whole / whole_base:.3f} |"
        else:
            line += f"{max(t.peak for t in seen[name]) / 1e9:.2f} |"
        lines.append(line)
    return "\n".join(lines)


def block_seconds(name, middle):
    """What one block adds to the step of that name; 0 where all blocks are there."""
    more = f"{name}, with more blocks"
    return (middle[more] - middle[name]) / ADDED if more in middle else 0.0


def conditions(place):
    motion, flow, subject = place.motion, place.flow, SubjectSettings()
    return (
        f"{WAN_1_3B.name}'s widths ({WAN_1_3B.dim}, ffn {WAN_1_3B.ffn}, {WAN_1_3B.heads} heads), "
        f"{place.blocks} blocks; VAE of width 96, {motion.width}x{motion.height}, {motion.frames} frames "
        f"({latent_frames(motion.frames)} latents, {motion.frames - 1} pairs), LoRA rank {motion.rank}; "
        f"window {motion.window}, context {motion.context}; {flow.name} of {flow.levels} correlation levels, "
        f"{flow.iterations} iterations; subject {subject.width}x{subject.height}; {place.dtype}, "
        f"{torch.get_num_threads()} thread."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join([*CASES, 'subject'])}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = place_on(torch.device(args.device))
    wanted = args.cases or [*CASES, "subject"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"Commit {commit.stdout.strip()}, torch {torch.__version__}. {conditions(place)}\n", flush=True)
    if any(name in CASES for name in wanted):
        seen = rounds(motion_steps(place, wanted), args.rounds, place.device)
        print(table(CASES, "plain", seen, place), end="\n\n", flush=True)
    if "subject" in wanted:
        seen = rounds(subject_steps(place), args.rounds, place.device)
        print(table(SUBJECT_CASES, "region", seen, place))


if __name__ == "__main__":
    main()
