"""FLOPs of a step at equal peak memory, this project's beside DiffSynth-Studio's, counted on the meta device.

    python -m tests.benchmarks.peers.equal_memory --diffsynth PATH [--blocks 30]

Both train the ten linears of a block at rank 32 in bfloat16 on the 1.3B's width, for a picture of 512x512 and
for a clip of 49 frames at 576x320. The peer recomputes every block. Counted are the tensors that a step
makes: weights, optimizer and workspaces come on top of both.
"""

import argparse
import logging
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import torch

from smra_core.lora.plan import ALL_LAYERS
from smra_core.training.motion_settings import MotionSettings
from smra_core.wan.recompute import KeptBlocks
from smra_core.wan.spec import WAN_1_3B

from ..meters import Count, count_step
from ..motion_step import BF16, META, Step
from .work import RANK, ROLES

CASES = {"512x512": (1, 512, 512), "49 frames 576x320": (49, 576, 320)}


def make_own_step(shape: tuple, blocks: int, kept: KeptBlocks):
    step = Step(MotionSettings(), blocks)
    step.denoiser(True).kept_blocks = kept
    target = step.draw(*shape)
    return step.make_step(
        ALL_LAYERS, RANK, lambda noisy, velocity, tokens: (velocity - target).square(), shape
    )


def make_diffsynth_step(shape: tuple, blocks: int):
    sys.modules.setdefault("modelscope", types.SimpleNamespace(snapshot_download=None))  # it downloads by it
    from diffsynth.diffusion.training_module import DiffusionTrainingModule
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.pipelines.wan_video import model_fn_wan_video

    with META:
        dit = WanModel(
            dim=WAN_1_3B.dim, in_dim=shape[1], ffn_dim=WAN_1_3B.ffn, out_dim=shape[1], text_dim=4096,
            freq_dim=256, eps=1e-6, patch_size=(1, 2, 2), num_heads=WAN_1_3B.heads, num_layers=blocks,
            has_image_input=False,
        ).to(BF16).requires_grad_(False)  # fmt: skip
    DiffusionTrainingModule().add_lora_to_model(dit, list(ROLES), RANK, upcast_dtype=torch.float32)
    dit.to(META).train()
    draw = lambda *size, dtype=BF16: torch.randn(size, device=META, dtype=dtype)  # noqa: E731
    latents, context, target = draw(*shape), draw(1, 512, 4096), draw(*shape, dtype=torch.float32)
    timestep = torch.full((1,), 500.0, device=META, dtype=BF16)

    def step():
        with META:
            velocity = model_fn_wan_video(
                dit, latents=latents, timestep=timestep, context=context, use_gradient_checkpointing=True
            )
        (velocity.float() - target).square().mean().backward()
        dit.zero_grad(set_to_none=True)

    return step


def list_choices(blocks: int) -> list[KeptBlocks]:
    """Return what may be kept, from nothing to all self-attention and a few whole blocks."""
    return [
        KeptBlocks(), KeptBlocks(0, blocks - 1), KeptBlocks(0, blocks),
        *(KeptBlocks(whole, blocks - whole) for whole in (1, 2)),
    ]  # fmt: skip


def print_row(name: str, count: Count, peer: Count) -> None:
    print(
        f"| {name} | {count.flops / 1e12:.2f} | {count.flops / peer.flops:.3f} | {count.peak / 1e9:.3f} "
        f"| {count.peak / peer.peak:.3f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--diffsynth", type=Path, metavar="PATH", required=True)
    parser.add_argument("--blocks", type=int, default=WAN_1_3B.blocks)
    args = parser.parse_args()
    sys.path.insert(0, str(args.diffsynth))
    logging.disable()
    torch.autocast = lambda *args, **options: nullcontext()  # the meta device has none
    for case, size in CASES.items():
        shape = (1, *WAN_1_3B.latents.latent_shape(*size))
        print(f"\n| {case} | TFLOP | / DiffSynth | peak GB | / DiffSynth |\n|---|---|---|---|---|")
        peer = count_step(make_diffsynth_step(shape, args.blocks))
        print_row("DiffSynth-Studio", peer, peer)
        for kept in list_choices(args.blocks):
            name = f"ours: {kept.whole} blocks whole, self-attention of {kept.attention}"
            print_row(name, count_step(make_own_step(shape, args.blocks, kept)), peer)


if __name__ == "__main__":
    main()
