"""Time of a training step, measured in one run: CPU time of a small one, or a GPU's time at the paper's size.

python -m tests.benchmarks.motion_step_time [case ...] [--rounds 3] [--device cpu]

On the CPU: the real widths of WAN, its VAE and SEA-RAFT M, random weights, float32, one thread, and the
process's own CPU time, which on a busy machine is still up to a quarter longer. The cases take turns, and the
median of each is given. The DiT has few blocks; to a step are added, as often as blocks are missing, the
seconds that one of them adds to a plain step. All parts of the paper's motion step are made smaller alike:
flow at half of the frames' size, windows of a quarter of the pairs. Yet the parts have other shares than at
the paper's size: attention over a few tokens is nearly free, so the decoder's share is larger. The ratios
hold for the size that is printed. The subject step has the paper's size.

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
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.sura import SubjectSettings
from smra_core.wan.spec import WAN_1_3B, latent_frames
from tests.benchmarks.motion_step import BF16, CASES, FEW_BLOCKS, SUBJECT_CASES, Step

SMALL = MotionSettings(width=64, height=64, frames=17, window=1)
"""A clip of five latents and 16 pairs: a window has a quarter of the pairs, as at the paper's size."""
SMALL_FLOW = replace(SEA_RAFT_M, levels=2)
"""SEA-RAFT M with so few correlation levels that half of 64 pixels is enough."""
ADDED = 4
"""Number of blocks that are added to a plain step, to measure what one of them adds."""


class Setup(NamedTuple):
    """Device and sizes of the steps that are timed."""

    device: torch.device
    dtype: torch.dtype
    motion: MotionSettings
    flow: SeaRaftConfig
    blocks: int

    @property
    def missing(self):
        """Number of blocks of the DiT that a timed step lacks."""
        return WAN_1_3B.blocks - self.blocks

    def make_step(self, more=0):
        """Make models and inputs, with `more` blocks than usual."""
        step = Step(self.motion, self.blocks + more, self.device, self.dtype, self.flow)
        if self.device.type == "cpu":
            with_fast_layers(step.vae)  # or one graph would stand for float32's slow conv3d
        return step


class Duration(NamedTuple):
    """Time and memory of one step."""

    seconds: float
    peak: int
    """Bytes above those that were allocated before; 0 where it is not measured."""


def choose_setup(device):
    """Return the paper's size on CUDA, a small one on other devices."""
    if device.type == "cuda":
        return Setup(device, BF16, MotionSettings(), SEA_RAFT_M, WAN_1_3B.blocks)
    return Setup(device, torch.float32, SMALL, SMALL_FLOW, FEW_BLOCKS)


def time_step(step, device):
    """Measure one step; return None when the device runs out of memory."""
    if device.type != "cuda":
        started = time.process_time()
        step()
        return Duration(time.process_time() - started, 0)
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
    return Duration(start.elapsed_time(end) / 1000, torch.cuda.max_memory_allocated(device) - before)


def time_rounds(steps, number, device):
    """Measure all steps in turn, `number` times; return the sorted durations of each."""
    seen = {name: [] for name in steps}
    for turn in range(number):
        for name, step in steps.items():
            seen[name].append(time_step(step, device))
            print(f"{turn + 1} of {number}, {name}: {seen[name][-1]}", file=sys.stderr, flush=True)
    return {name: sorted(filter(None, durations)) for name, durations in seen.items()}


def make_motion_steps(setup, wanted):
    """Return functions that run a step, by case; where blocks are missing, also plain steps with more of
    them.
    """
    step = setup.make_step()
    names = [name for name in CASES if name == "plain" or name in wanted]
    steps = {name: CASES[name][1](step) for name in names}
    if setup.missing:
        more = setup.make_step(ADDED)
        steps["plain, with more blocks"] = more.make_motion_step()
        if "naive" in names:
            steps["kept"], steps["kept, with more blocks"] = (
                some.make_motion_step(checkpoint=False) for some in (step, more)
            )
    return steps


def make_subject_steps(setup):
    step = setup.make_step()
    steps = {name: make(step) for name, (_, make) in SUBJECT_CASES.items()}
    if setup.missing:
        steps["region, with more blocks"] = setup.make_step(ADDED).make_subject_step(aligned=False)
    return steps


def render_table(cases, base, seen, setup):
    """Render times and ratios to the base, and both with all blocks where a step lacks some."""
    middle = {
        name: statistics.median(each.seconds for each in durations)
        for name, durations in seen.items()
        if durations
    }
    head = f"| mode | s | lowest to highest | / {base} |"
    head += f" s, {WAN_1_3B.blocks} blocks | / {base} |" if setup.missing else " peak above the weights, GB |"
    lines = [head, "|---" * head.count(" |") + "|"]
    whole_base = middle[base] + setup.missing * estimate_block_seconds(base, middle)
    for name in (name for name in cases if name in seen):
        if name not in middle:
            lines.append(f"| {name} | out of memory |")
            continue
        lowest, highest = seen[name][0], seen[name][-1]
        line = f"| {name} | {middle[name]:.2f} | {lowest.seconds:.2f} to {highest.seconds:.2f} | "
        line += f"{middle[name] / middle[base]:.3f} | "
        if setup.missing:
            whole = middle[name] + setup.missing * estimate_block_seconds(
                "kept" if name == "naive" else base, middle
            )
            line += f"{whole:.1f} | {whole / whole_base:.3f} |"
        else:
            line += f"{max(t.peak for t in seen[name]) / 1e9:.2f} |"
        lines.append(line)
    return "\n".join(lines)


def estimate_block_seconds(name, middle):
    """Return the seconds that one block adds to the step of that name; 0 where no block is missing."""
    more = f"{name}, with more blocks"
    return (middle[more] - middle[name]) / ADDED if more in middle else 0.0


def describe_conditions(setup):
    """Return a sentence on models, sizes and device."""
    motion, flow, subject = setup.motion, setup.flow, SubjectSettings()
    return (
        f"{WAN_1_3B.name}'s widths ({WAN_1_3B.dim}, ffn {WAN_1_3B.ffn}, {WAN_1_3B.heads} heads), "
        f"{setup.blocks} blocks; VAE of width 96, {motion.width}x{motion.height}, {motion.frames} frames "
        f"({latent_frames(motion.frames)} latents, {motion.frames - 1} pairs), LoRA rank {motion.rank}; "
        f"window {motion.window}, context {motion.context}; {flow.name} of {flow.levels} correlation levels, "
        f"{flow.iterations} iterations; subject {subject.width}x{subject.height}; {setup.dtype}, "
        f"{torch.get_num_threads()} thread."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cases", nargs="*", help=f"Cases to time, of {', '.join([*CASES, 'subject'])}. (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds. (default: 3)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="Device to time on. (default: cuda if there is one, else cpu)",
    )  # fmt: skip
    args = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setup = choose_setup(torch.device(args.device))
    wanted = args.cases or [*CASES, "subject"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(
        f"Commit {commit.stdout.strip()}, torch {torch.__version__}. {describe_conditions(setup)}\n",
        flush=True,
    )
    if any(name in CASES for name in wanted):
        seen = time_rounds(make_motion_steps(setup, wanted), args.rounds, setup.device)
        print(render_table(CASES, "plain", seen, setup), end="\n\n", flush=True)
    if "subject" in wanted:
        seen = time_rounds(make_subject_steps(setup), args.rounds, setup.device)
        print(render_table(SUBJECT_CASES, "region", seen, setup))


if __name__ == "__main__":
    main()
