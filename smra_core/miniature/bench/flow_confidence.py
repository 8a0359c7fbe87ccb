"""Whether MoRA learns better if it leaves out pixels whose reference flow is not to be trusted.

A pillar is painted in front of the reference clip, which hides the sprite on its way. Where the flow forth
and the flow back do not agree, the reference has no weight. MoRA alone is trained with and without that.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...encoders.sea_raft import SeaRaft
from ...lora.adapter import Lora, init_lora
from ...training.mora import MotionObjective, MotionSample
from ...training.motion import prepare_motion
from ...training.trainer import train_lora
from ...wan.noise_range import WHOLE
from ..recipe.stage import cast_where_fast
from ..small_settings import MOTION, MOTION_TRAINING
from ..weight_paths import SEA_RAFT_FILE
from .arm_clips import decode_clips, list_motion_scenes, measure_motion, sample_stack
from .arm_run import Nets
from .arm_table import compare_arms, render_arms
from .run import Bench, open_bench
from .run_arms import load_nets
from .stacked_lora import StackedLora
from .table import read_clips

CONFIDENCE_FILE = "confidence.jsonl"
CASE = "zigzag"
PILLAR, PILLAR_COLOR = slice(27, 37), 0.6
"""Columns of pixels that the pillar covers, in the middle of the track, and its gray."""
WITHOUT, WITH = "all pixels", "trusted pixels"


def run_confidence(folder: Path, seeds: int) -> str:
    """Train both arms from each seed that is not in the file yet; return the table and the difference."""
    bench, nets, path = open_bench(folder), load_nets(torch.device("cpu")), folder / CONFIDENCE_FILE
    done = {line["seed"] for line in read_clips(path)} if path.is_file() else set()
    for seed in sorted(set(range(seeds)) - done):
        lines = list(measure_seed(bench, nets, seed))
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    clips, steps = read_clips(path), MOTION_TRAINING.steps
    differences = [
        f"{column} {compare_arms(clips, WITH, WITHOUT, steps, column)}" for column in ("error", "recognized")
    ]
    return f"{render_arms(clips, steps)}\n\n{WITH} less {WITHOUT}: {', '.join(differences)}"


def measure_seed(bench: Bench, nets: Nets, seed: int) -> Iterator[dict]:
    """Train both arms from one seed; yield a dictionary for each of their clips."""
    clip = bench.write_clip(CASE)
    clip = clip._replace(name="pillar", frames=put_pillar(clip.frames))
    sample = prepare_motion(bench.backend, [clip], SEA_RAFT_FILE)[0]
    weight = weigh_pixels(nets.flow_net, clip.frames)
    for arm, trained_on in ((WITHOUT, sample), (WITH, sample._replace(flow_weight_px=weight))):
        lora = train_flow_alone(nets, trained_on, seed)
        scenes = list_motion_scenes(CASE)
        stack = StackedLora([lora], nets.device).pick([0])
        with cast_where_fast():
            prompts = [[scene.prompt for scene in scenes]]
            latents = sample_stack(nets.denoiser, stack, prompts, 10_000 * (seed + 1), [WHOLE])
            clips = decode_clips(nets.decoder, latents[0]).float() / 255
        for number, (video, scene) in enumerate(zip(clips, scenes, strict=True)):
            metrics = {name: round(value, 4) for name, value in measure_motion(video, scene).items()}
            yield {
                "arm": arm,
                "case": CASE,
                "seed": seed,
                "steps": MOTION_TRAINING.steps,
                "clip": number,
                **metrics,
            }


def put_pillar(frames: Tensor) -> Tensor:
    """Paint a gray pillar in front of a clip `F 3 H W`."""
    frames = frames.clone()
    frames[..., PILLAR] = PILLAR_COLOR
    return frames


@torch.no_grad()
def weigh_pixels(flow_net: SeaRaft, frames: Tensor) -> Tensor:
    """Return weights `F-1 1 H W` of mean 1 for the flow's pixels of a clip `F 3 H W` in [0, 1]: 0 where the
    flow forth and the flow back do not cancel.
    """
    forth = flow_net.compute_pair_flows(frames * 255)
    back = flow_net.compute_pair_flows(frames.flip(0) * 255).flip(0)
    trusted = check_consistency(forth, back).to(frames.dtype)
    return trusted / trusted.mean()


def check_consistency(forth: Tensor, back: Tensor) -> Tensor:
    """Return where flows `P 2 H W` forth and back cancel, bool `P 1 H W`.

    The bound is UnFlow's (Meister et al., 2018): a squared distance of 1 % of both squared lengths, and 0.5
    pixels more.
    """
    from kornia.geometry.transform import remap
    from kornia.utils import create_meshgrid

    grid = create_meshgrid(*forth.shape[-2:], normalized_coordinates=False, device=forth.device)
    place = grid.permute(0, 3, 1, 2) + forth
    returned = remap(back, place[:, 0], place[:, 1], align_corners=True)
    lengths = forth.square().sum(1, keepdim=True) + returned.square().sum(1, keepdim=True)
    return (forth + returned).square().sum(1, keepdim=True) < 0.01 * lengths + 0.5


def train_flow_alone(nets: Nets, sample: MotionSample, seed: int) -> Lora:
    """Train a motion LoRA by the flow loss alone, on the whole clip."""
    settings = replace(MOTION, mora_weight=300.0, mora_share=0.0)
    objective = MotionObjective(settings, nets.decoder, nets.flow_net.compute_pair_flows)
    objective.weights = {**objective.weights, "temporal": 0.0}
    generator = torch.Generator().manual_seed(seed)
    lora = init_lora(nets.denoiser.spec, settings.plan, settings.rank, generator)
    train_lora(nets.denoiser, lora, objective, [sample], replace(MOTION_TRAINING, seed=seed))
    return lora
