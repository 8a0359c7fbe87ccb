"""Time and memory of a step whose blocks wait in host memory, beside one whose blocks are all on the card.

    python -m tests.benchmarks.block_stream [--blocks 8] [--json FILE]

Blocks have the width of the 14B and random weights. A step is forward and backward of all blocks with a LoRA,
each block recomputed. Without a card it runs at a tiny width, which tests the script alone.
"""

import argparse
import json
import os
import statistics
import time
from functools import partial

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # sums in one order, for the comparison of bits

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from smra_core.lora.adapter import Injection, init_lora, injected
from smra_core.lora.plan import MOTION
from smra_core.standalone.checkpoint_weights import SCALE
from smra_core.standalone.diffusers_wan import DiffusersDenoiser
from smra_core.storage.on_demand import free_memory
from smra_core.wan.block_stream import Copies, pack
from smra_core.wan.pinned_memory import PinnedPieces

HEADS, FFN, RANK, STEPS = 40, 13824, 64, 4
SIZES = {"picture 512x512": (1, 64, 64), "49 frames 576x320": (13, 40, 72)}
TINY = {"tiny": (1, 4, 4)}
ARMS = {
    "16 bit, all on the card": ("bf16", None),
    "the same again": ("bf16", None),
    "16 bit, half wait": ("bf16", 0.5),
    "16 bit, all wait": ("bf16", 0.0),
    "fp8, all on the card": ("fp8", None),
    "fp8, half wait": ("fp8", 0.5),
    "fp8, all wait": ("fp8", 0.0),
}
GB = 1e9


def make_dit(blocks: int, form: str, device: torch.device):
    """Make the same random DiT each time, on the host, with the linears of its blocks in 16 bit or in fp8."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    heads, ffn = (HEADS, FFN) if device.type == "cuda" else (1, 32)
    with torch.device(device):
        dit = WanTransformer3DModel(num_attention_heads=heads, ffn_dim=ffn, num_layers=blocks)
    dit = dit.requires_grad_(False).to(torch.bfloat16)
    for module in dit.blocks.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.abs().max().float() / 448
            stored = (module.weight.float() / scale).to(torch.float8_e4m3fn)
            if form == "fp8":
                module.weight = nn.Parameter(stored, requires_grad=False)
                module.register_buffer(SCALE, scale, persistent=False)
            else:  # the values of fp8, so that all arms must agree
                module.weight.data = (stored.float() * scale).to(torch.bfloat16)
    return dit.cpu()


def measure_arm(form: str, share: float | None, blocks: int, sizes: dict, device: torch.device) -> dict:
    """Return seconds, peak bytes and the gradients of a step at each size."""
    resident = None if share is None else round(share * blocks)
    denoiser = DiffusersDenoiser(make_dit(blocks, form, device), True, device, resident)
    lora = init_lora(denoiser.spec, MOTION, RANK, torch.Generator().manual_seed(0))
    for index, pair in enumerate(lora.values()):
        nn.init.normal_(pair.b, std=0.01, generator=torch.Generator().manual_seed(index))
        pair.to(device)
    parameters = [each for pair in lora.values() for each in pair.parameters()]
    found = {}
    with injected(denoiser.linears(), Injection(lora)):
        for name, grid in sizes.items():
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION if device.type == "cuda" else SDPBackend.MATH):
                torch.use_deterministic_algorithms(True)
                take_step(denoiser, parameters, grid, device)
                torch.use_deterministic_algorithms(False)
            gradients = [each.grad.cpu() for each in parameters]
            step = partial(take_step, denoiser, parameters, grid, device)
            found[name] = {**time_steps(step, device), "gradients": gradients}
    denoiser.close()
    del denoiser
    free_memory()
    return found


def take_step(denoiser, parameters, grid, device) -> None:
    generator = torch.Generator().manual_seed(1)
    latents, context = (
        torch.randn(s, generator=generator).to(device) for s in ((1, 16, *grid), (1, 512, 4096))
    )
    for each in parameters:
        each.grad = None
    denoiser.velocity(
        latents, torch.tensor([0.6], device=device), context
    ).velocity.square().mean().backward()


def time_steps(step, device) -> dict:
    """Return the median of a few steps, and what tensors took at most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(STEPS):
        started = time.monotonic()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
    peak = torch.cuda.max_memory_allocated() / GB if device.type == "cuda" else 0.0
    return {"seconds": statistics.median(seconds[1:]), "peak_gb": peak}


def measure_link(device: torch.device) -> dict[str, float]:
    """Return the GB a second of copies to the card from pinned and from pageable memory."""
    if device.type != "cuda":
        return {}
    piece, _ = pack([torch.zeros(2**28, dtype=torch.uint8)])
    target, pieces, speeds = torch.empty_like(piece, device=device), PinnedPieces(device), {}
    copies = Copies(device)
    for kind in ("pageable", "pinned"):
        if kind == "pinned":
            pieces.add(piece)
        for _ in range(3):
            torch.cuda.synchronize()
            started = time.monotonic()
            copies.start([piece], [target])
            copies.stop()
            speeds[kind] = piece.nbytes / (time.monotonic() - started) / GB
    pieces.release()
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--json")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SIZES if device.type == "cuda" else TINY
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    report = {"device": name, "blocks": args.blocks, "link GB/s": measure_link(device), "rows": []}
    print(report, flush=True)
    expected: dict[str, list] = {}
    for arm, (form, share) in ARMS.items():
        for size, row in measure_arm(form, share, args.blocks, sizes, device).items():
            gradients = row.pop("gradients")
            first = expected.setdefault(size, gradients)
            row["bit_equal"] = all(torch.equal(a, b) for a, b in zip(gradients, first, strict=True))
            report["rows"].append({"size": size, "arm": arm, **row})
            print(report["rows"][-1], flush=True)
            if args.json:
                with open(args.json, "w", encoding="utf-8") as file:
                    json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
