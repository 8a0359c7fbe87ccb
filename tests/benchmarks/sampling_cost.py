"""Cost of the Sparse LoRA Loader while sampling, compared with the stock loader and the same LoRAs merged.

Runs in ComfyUI's own interpreter, on its sampler and the true width of WAN 2.1 1.3B, two blocks deep:

    COMFYUI_PATH=~/comfy/ComfyUI ~/comfy/ComfyUI/.venv/bin/python tests/benchmarks/sampling_cost.py

The variants take turns on one model, and CPU times of the process are measured, so that other programs matter
less. Every number is a ratio to the stock loader in the same run.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "host" / "inside"))

import conftest  # noqa: E402, F401  (makes the host and the pack importable)
import random_wan  # noqa: E402
import torch  # noqa: E402
from smrabooth_pack.nodes.patching.apply_loras import apply_loras  # noqa: E402
from smrabooth_pack.nodes.patching.call_time_swap import CallTimeSwap  # noqa: E402
from smrabooth_pack.smra_core.lora.adapter import LoraPair, replaced_forwards  # noqa: E402
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule, TPoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

random_wan.DIM, random_wan.FFN = 1536, 8960
RANKS = {"subject": 32, "motion": 64}
LAYERS = {"subject": random_wan.SUBJECT_LAYERS, "motion": random_wan.MOTION_LAYERS}
BLOCKS_OF_1_3B, SWAPS = 30, 100
SWITCHED, CONSTANT = Strengths(0.4, 0.8), Strengths.from_value(1.0)


def make_factors(purpose: str, names=None) -> dict:
    random_wan.RANK = RANKS[purpose]
    return random_wan.lora_tensors(LAYERS[purpose], seed=len(purpose), size=0.1, names=names)


def make_pairs(purpose: str, names=None) -> dict:
    return {name: LoraPair(a, b) for name, (a, b) in make_factors(purpose, names).items()}


def make_variants(model) -> dict:
    """Return the MODELs to compare by name, the stock loader's first."""
    import comfy.sd

    stock = model
    for purpose in RANKS:
        named = {}
        for name, (a, b) in make_factors(purpose).items():
            named[f"diffusion_model.{name}.lora_A.weight"] = a
            named[f"diffusion_model.{name}.lora_B.weight"] = b
        stock, _ = comfy.sd.load_lora_for_models(stock, None, named, 1.0, 0)
    both = {purpose: make_pairs(purpose) for purpose in RANKS}

    def apply_ours(subject: Strengths, motion: Strengths):
        scheduled = [ScheduledLora(both["subject"], subject), ScheduledLora(both["motion"], motion)]
        return apply_loras(model, scheduled, StrengthSchedule(0.7)).model

    return {
        "stock, merged": stock,
        "ours, constant": apply_ours(CONSTANT, CONSTANT),
        "ours, subject switched": apply_ours(SWITCHED, CONSTANT),
        "ours, both switched": apply_ours(SWITCHED, Strengths(1.0, 0.5)),
    }


def time_steps(model, steps: int) -> list[float]:
    """Return the CPU seconds of every step but the first, in which the model is loaded."""
    marks = []
    random_wan.sample(model, steps=steps, cfg=1.0, callback=lambda *_: marks.append(time.process_time()))
    return [after - before for before, after in zip(marks, marks[1:], strict=False)]


def count_flops(model) -> int:
    with FlopCounterMode(display=False) as counter:
        random_wan.sample(model, steps=1, cfg=1.0)
    return counter.get_total_flops()


def time_swap() -> tuple[float, int, int]:
    """Time one replacement and restoration of the forwards at the depth of the 1.3B.

    Returns the seconds, the number of modules, and the bytes of their factors in bfloat16.
    """
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    random_wan.BLOCKS = BLOCKS_OF_1_3B
    holder = torch.nn.Module()
    with torch.device("meta"):
        holder.diffusion_model = WanModel(
            model_type="t2v", dim=random_wan.DIM, ffn_dim=random_wan.FFN, num_heads=12,
            num_layers=BLOCKS_OF_1_3B, text_dim=random_wan.TEXT_DIM, operations=comfy.ops.disable_weight_init,
        )  # fmt: skip
    lora = make_pairs("subject")
    swap = CallTimeSwap([ScheduledLora(lora, SWITCHED)], lambda _: TPoint(0.7))
    state = swap._state(holder)
    started = time.process_time()
    for _ in range(SWAPS):
        with replaced_forwards(state.replacements(holder)):
            pass
    seconds = (time.process_time() - started) / SWAPS
    return seconds, len(lora), sum(2 * (pair.a.numel() + pair.b.numel()) for pair in lora.values())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--rounds", type=int, default=3, help="Number of times that every variant is sampled. (default: 3)"
    )
    options.add_argument("--steps", type=int, default=5, help="Sampling steps. (default: 5)")
    options.add_argument(
        "--latent",
        type=int,
        nargs=3,
        default=(1, 30, 52),
        help="Latent frames, height and width. (default: 1 30 52)",
    )
    given = options.parse_args()
    random_wan.LATENT = (1, 16, *given.latent)
    models = make_variants(random_wan.load(random_wan.state_dict()))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(given.rounds):
        for name, model in models.items():
            seconds[name] += time_steps(model, given.steps)
    stock = statistics.median(seconds["stock, merged"])
    # Merging takes products, too, but no part of a step: a first run leaves it done.
    flops = {}
    for name, model in models.items():
        random_wan.sample(model, steps=1, cfg=1.0)
        flops[name] = count_flops(model)
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{name:24} {middle:7.3f} s a step (least {min(values):.3f}, {len(values)} steps), "
            f"{middle / stock:.3f} x stock; {flops[name] / flops['stock, merged']:.4f} x its FLOPs"
        )
    swap, modules, size = time_swap()
    print(
        f"swap and restore of {modules} linears: {1000 * swap:.2f} ms an evaluation; "
        f"factors on the device {size / 1e6:.0f} MB in bfloat16"
    )


if __name__ == "__main__":
    main()
