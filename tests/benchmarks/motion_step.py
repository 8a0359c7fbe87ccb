"""Cost of a training step at the paper's size, counted on the meta device: FLOPs, memory, memory traffic.

    python -m tests.benchmarks.motion_step [case ...] [--width 576 --height 320 --frames 49] [--model NAME]

Blocks of the DiT are alike but for the first, whose input needs no gradient. So a step with two blocks is
counted, and to it is added what a third one adds to a plain step. The real modules run without data, so the
numbers are the same on every machine. Weights, optimizer, the CUDA context and the workspaces of convolutions
come on top of the memory.
"""

import argparse
import logging
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import cached_property
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from smra_core.decoding.flow_gradient import FlowComparison, compute_flow_loss
from smra_core.decoding.tiny_decoder import TinyDecoder
from smra_core.decoding.wan_decoder import WanVideoDecoder
from smra_core.decoding.windows import take_whole_clip, warm_windows
from smra_core.encoders.sea_raft import PAIRS_PER_CHUNK, SeaRaft
from smra_core.encoders.sea_raft_config import SEA_RAFT_M
from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import SUBJECT
from smra_core.standalone.diffusers_wan import DiffusersDenoiser
from smra_core.training.decode_memory import estimate
from smra_core.training.mora import LATENTS_AT_ONCE, flow_alignment_loss, temporal_loss
from smra_core.training.motion_settings import DECODE_MODES, MotionSettings
from smra_core.training.sura import SubjectSettings, make_projector, region_loss, sura_loss
from smra_core.wan.flow_matching import x0_from_velocity
from smra_core.wan.latents import denormalize
from smra_core.wan.spec import LATENTS_21, SPECS, WAN_1_3B, latent_frames
from tests.benchmarks.meters import Count, HostCopies, count_step

META, BF16 = torch.device("meta"), torch.bfloat16
DINOV2_G = 1536
"""Width of DINOv2 ViT-g's features."""
FEW_BLOCKS = 2
"""Number of blocks of the DiT in a step that is counted."""
VAE_22 = dict(
    base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12,
    patch_size=2, scale_factor_spatial=16,
)  # fmt: skip
"""Published sizes of Wan 2.2's VAE."""
MODELS = {spec.name: spec for spec in SPECS}


class Step:
    """Random models and inputs of a training step; on the meta device they hold no data."""

    def __init__(self, settings, blocks=FEW_BLOCKS, device=META, dtype=BF16, flow=SEA_RAFT_M, spec=WAN_1_3B):
        self.settings, self.blocks, self.flow, self.spec = settings, blocks, flow, spec
        self.device, self.dtype = device, dtype
        self.denoisers = {}
        self.latents = latent_frames(settings.frames)
        self.shape = (1, *spec.latents.latent_shape(settings.frames, settings.width, settings.height))

    @cached_property
    def vae(self):
        with self.device:
            sizes = {} if self.spec.latents is LATENTS_21 else VAE_22
            return AutoencoderKLWan(**sizes).to(self.dtype).requires_grad_(False)

    @cached_property
    def flow_net(self):
        with self.device:
            return SeaRaft(self.flow).freeze()

    @cached_property
    def tiny(self):
        with self.device:
            return TinyDecoder(latents=self.spec.latents).to(self.dtype)

    def draw(self, *shape, dtype=torch.float32):
        return torch.randn(shape, device=self.device, dtype=dtype)

    def denoiser(self, checkpoint):
        """Return the DiT, one for all steps with checkpoints and one for all without."""
        if checkpoint not in self.denoisers:
            spec, channels = self.spec, self.spec.latents.channels
            with self.device:
                dit = WanTransformer3DModel(
                    num_layers=self.blocks, ffn_dim=spec.ffn, num_attention_heads=spec.heads,
                    attention_head_dim=spec.dim // spec.heads, in_channels=channels, out_channels=channels,
                ).to(self.dtype)  # fmt: skip
            self.denoisers[checkpoint] = DiffusersDenoiser(dit.train(), checkpoint)
        return self.denoisers[checkpoint]

    def make_step(self, plan, rank, loss, shape, checkpoint=True):
        """Return a function that runs a step: velocity, `loss(noisy, velocity, tokens)`, backward."""
        denoiser = self.denoiser(checkpoint)
        lora = init_lora(denoiser.spec, plan, rank, torch.Generator())
        for pair in lora.values():
            pair.to(self.device)
        noisy, sigma = self.draw(*shape), self.make_sigma()
        context = self.draw(1, 512, 4096, dtype=self.dtype)

        def step():
            with injected(denoiser.linears(), Injection(lora)):
                velocity, tokens = denoiser.velocity(
                    noisy, sigma, context, token_block=0 if plan is SUBJECT else None
                )
                loss(noisy, velocity, tokens).mean().backward()
            for pair in lora.values():
                pair.zero_grad(set_to_none=True)

        return step

    def make_sigma(self):
        return torch.full((1,), 0.5, device=self.device)

    def make_motion_step(self, mora=None, checkpoint=True):
        target, sigma = self.draw(*self.shape), self.make_sigma()
        anchor = torch.zeros(1, dtype=torch.long, device=self.device)

        def loss(noisy, velocity, tokens):
            total = temporal_loss(velocity, target, anchor)
            return total if mora is None else total + mora(x0_from_velocity(noisy, velocity, sigma))

        return self.make_step(self.settings.plan, self.settings.rank, loss, self.shape, checkpoint)

    def make_reference(self, shrink=1):
        height, width = self.settings.height // shrink, self.settings.width // shrink
        return self.draw(1, self.settings.frames - 1, 2, height, width)

    def make_naive_step(self):
        reference = self.make_reference()[0]

        def mora(x0):
            pixels = self.vae.decode(denormalize(x0).to(self.dtype)).sample
            frames = (pixels[0].transpose(0, 1).float() + 1) * 127.5
            flow = self.flow_net.compute_pair_flows(frames, pairs_per_chunk=len(frames))
            return flow_alignment_loss(flow, reference)

        return self.make_motion_step(mora, checkpoint=False)

    def make_streamed_step(self, decoder, window=None, at_once=0, shrink=1):
        objective = FlowComparison(
            decoder, self.flow_net.compute_pair_flows, flow_alignment_loss, at_once, PAIRS_PER_CHUNK
        )
        reference = self.make_reference(shrink)
        window = window or take_whole_clip(self.latents)[0]

        return self.make_motion_step(lambda x0: compute_flow_loss(x0, reference, objective, [window]))

    def make_windowed_step(self, recompute):
        """Decode the most costly window: one that does not begin the clip, with all of its context."""
        decoder = WanVideoDecoder.of(self.vae, recompute)
        reference = self.draw(*self.shape[1:])
        return self.make_streamed_step(
            decoder, warm_windows(reference, decoder, self.settings.window, self.settings.context)[-1]
        )

    def make_subject_step(self, aligned):
        settings = SubjectSettings()
        shape = (1, *self.spec.latents.latent_shape(1, settings.width, settings.height))
        target, mask = self.draw(*shape), torch.ones_like(self.draw(*shape)[:, :1])
        head = make_projector(self.spec.dim, DINOV2_G, settings.projector_width, torch.Generator())
        head.to(self.device)
        features = self.draw(1, shape[-1] * shape[-2] // 4, DINOV2_G)

        def loss(noisy, velocity, tokens):
            region = region_loss(velocity, target, mask)
            return region + sura_loss(head(tokens.float()), features) if aligned else region

        return self.make_step(settings.plan, settings.rank, loss, shape, checkpoint=False)


CASES = {
    "plain": ("temporal loss alone, DiT blocks checkpointed", lambda step: step.make_motion_step()),
    "naive": ("one graph, nothing recomputed", lambda step: step.make_naive_step()),
    "exact": (
        "whole clip, blocks recomputed by half",
        lambda step: step.make_streamed_step(WanVideoDecoder.of(step.vae, recompute=True)),
    ),
    "exact-low-memory": (
        f"whole clip, graph of {LATENTS_AT_ONCE} latent at a time, states in host memory",
        lambda step: step.make_streamed_step(WanVideoDecoder.of(step.vae), at_once=LATENTS_AT_ONCE),
    ),
    "windowed": ("window, nothing recomputed", lambda step: step.make_windowed_step(recompute=False)),
    "windowed-recompute": (
        "window, blocks recomputed by half",
        lambda step: step.make_windowed_step(recompute=True),
    ),
    "tiny": (
        "whole clip, tiny decoder at half size",
        lambda step: step.make_streamed_step(step.tiny, shrink=2),
    ),
}
SUBJECT_CASES = {
    "region": ("region loss alone", lambda step: step.make_subject_step(aligned=False)),
    "sura": ("with SuRA", lambda step: step.make_subject_step(aligned=True)),
}


def make_settings(args):
    return MotionSettings(width=args.width, height=args.height, frames=args.frames)


class Scale(NamedTuple):
    """Extrapolation from a step with a few blocks of the DiT to one with all."""

    missing: int
    block: Count
    """Cost that one block adds to a step."""

    def extrapolate(self, count):
        """Return the cost of a step with all blocks, given that of one with few."""
        names = ("flops", "peak", "saved", "moved")
        return Count(*(getattr(count, name) + self.missing * getattr(self.block, name) for name in names))


def measure_scale(make, args, blocks):
    """Measure what a block adds, from plain steps with a few blocks and with one more.

    It adds to the peak what it keeps while others work, which is the same while pixels are decoded.
    """
    few, more = (
        count_step(make(Step(make_settings(args), number, spec=MODELS[args.model])))
        for number in (FEW_BLOCKS, FEW_BLOCKS + 1)
    )
    names = ("flops", "peak", "saved", "moved")
    return Scale(blocks - FEW_BLOCKS, Count(*(getattr(more, name) - getattr(few, name) for name in names)))


def measure(cases, args, copies):
    """Count a step of each case that is wanted; return (name, text, cost, FLOPs over the first case's)."""
    (base, (_, plain)), *_ = cases.items()
    wanted = [name for name in cases if not args.cases or name in args.cases]
    if not wanted:
        return []
    blocks = MODELS[args.model].blocks
    scale = measure_scale(plain, args, blocks)
    graph = scale
    if "naive" in wanted:
        graph = measure_scale(lambda step: step.make_motion_step(checkpoint=False), args, blocks)
    rows, first = [], None
    for name in [base, *(name for name in wanted if name != base)]:
        started = time.process_time()
        text, make = cases[name]
        before = copies.count
        one = count_step(make(Step(make_settings(args), spec=MODELS[args.model])))
        if name == "exact-low-memory" and copies.count == before:
            raise AssertionError(
                f"{name} copied nothing to host memory: HostCopies no longer sees how states are offloaded."
            )
        count = (graph if name == "naive" else scale).extrapolate(one)
        first = first or count
        rows.append((name, text, count, count.flops / first.flops))
        print(f"{name}: {time.process_time() - started:.0f} s, {count}", file=sys.stderr, flush=True)
    return rows


def render_table(rows, base, args):
    lines = [
        f"| mode | what | TFLOP | / {base} | activation peak GB | estimate GB | saved GB | moved GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, text, count, ratio in rows:
        estimated = compare_estimate(name, args, count.peak)
        lines.append(
            f"| {name} | {text} | {count.flops / 1e12:.1f} | {ratio:.3f} | {count.peak / 1e9:.2f} | "
            f"{estimated} | {count.saved / 1e9:.2f} | {count.moved / 1e9:.0f} |"
        )
    return "\n".join(lines)


def compare_estimate(name, args, peak):
    """Return the forecast's estimate of the same step's memory, and how far it is from the counted peak."""
    decode = name.removesuffix("-recompute")
    if decode not in DECODE_MODES:
        return "-"
    settings = make_settings(args)
    recompute = decode == "exact" or decode != name
    expected = estimate(settings, decode, recompute, MODELS[args.model]).bytes
    return f"{expected / 1e9:.2f} ({100 * (expected / peak - 1):+.0f} %)"


def describe_conditions(args):
    """Return a sentence on the model and the sizes that are counted."""
    windows = MotionSettings()
    return (
        f"{args.model} with {MODELS[args.model].blocks} blocks, {args.width}x{args.height}, "
        f"{args.frames} frames, "
        f"{args.frames - 1} pairs, bfloat16; SEA-RAFT M in float32 at half of 576x320, "
        f"{SEA_RAFT_M.iterations} iterations, {PAIRS_PER_CHUNK} pairs at once; window "
        f"{windows.window}, context {windows.context}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cases", nargs="*", help=f"Cases to count, of {', '.join([*CASES, *SUBJECT_CASES])}. (default: all)"
    )
    defaults = MotionSettings()
    for name in ("width", "height", "frames"):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"As for training. (default: {default})"
        )
    parser.add_argument(
        "--model", default=WAN_1_3B.name, choices=MODELS, help=f"Model. (default: {WAN_1_3B.name})"
    )
    args = parser.parse_args()
    logging.disable()
    torch.autocast = lambda *args, **options: nullcontext()  # the meta device has none
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"Commit {commit.stdout.strip()}, torch {torch.__version__}. {describe_conditions(args)}\n")
    with HostCopies() as copies:
        for cases, base in ((CASES, "plain"), (SUBJECT_CASES, "region")):
            rows = measure(cases, args, copies)
            if rows:
                print(render_table(rows, base, args), flush=True)
                print()


if __name__ == "__main__":
    main()
