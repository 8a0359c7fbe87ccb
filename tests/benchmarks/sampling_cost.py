"""Cost of the Sparse LoRA Loader while sampling, compared with the stock loader and the same LoRAs merged.

Runs in ComfyUI's own interpreter, on its sampler and the true width of WAN 2.1 1.3B, two blocks deep:

    COMFYUI_PATH=~/comfy/ComfyUI ~/comfy/ComfyUI/.venv/bin/python tests/benchmarks/sampling_cost.py

The variants take turns on one model, in an order drawn anew in each round, and CPU times of the process are
measured, so that other programs matter less. The stock loader runs twice: how far its second run is from the
first is what noise alone gives. Every number is a ratio to the stock loader in the same run. The pair of Wan
2.2 is counted, not timed: 4 steps (2 and 2) at the width of the 14B, one block deep.
"""

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "host" / "inside"))

sys.path.append(str(HERE))

import conftest  # noqa: E402, F401  (makes the host and the pack importable)
import random_wan  # noqa: E402
import torch  # noqa: E402
from meters import IN_PLACE  # noqa: E402
from smrabooth_pack.nodes.patching.apply_loras import (  # noqa: E402
    AUTO,
    ON_THE_FLY,
    apply_loras,
    at_constant_strength,
)
from smrabooth_pack.nodes.patching.call_time_swap import CallTimeSwap  # noqa: E402
from smrabooth_pack.smra_core.lora.adapter import LoraPair, replaced_forwards  # noqa: E402
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule, TPoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

SIZES = {"1.3B": (1536, 8960, 2), "14B": (5120, 13824, 1)}
"""Width, feed-forward width and the number of blocks here."""
RANKS = {"subject": 32, "motion": 64}
LAYERS = {"subject": random_wan.SUBJECT_LAYERS, "motion": random_wan.MOTION_LAYERS}
TEXT_TOKENS = 512
BLOCKS_OF_1_3B, SWAPS = 30, 100
SWITCHED, CONSTANT = Strengths(0.4, 0.8), Strengths.from_value(1.0)
BOTH_SWITCHED = SWITCHED, Strengths(1.0, 0.5)
PAIR_STEPS, PAIR_SHIFT = 4, 5.0
STOCK, AGAIN = "stock, merged", "stock again"


def set_size(name: str) -> None:
    random_wan.DIM, random_wan.FFN, random_wan.BLOCKS = SIZES[name]
    random_wan.TEXT_TOKENS = TEXT_TOKENS


def make_factors(purpose: str, names=None) -> dict:
    random_wan.RANK = RANKS[purpose]
    return random_wan.lora_tensors(LAYERS[purpose], seed=len(purpose), size=0.1, names=names)


def make_pairs(purpose: str, names=None) -> dict:
    return {name: LoraPair(a, b) for name, (a, b) in make_factors(purpose, names).items()}


def apply_stock(model, strengths: dict[str, float]):
    """Return the MODEL with both LoRAs merged by ComfyUI's own loader."""
    import comfy.sd

    for purpose, strength in strengths.items():
        named = {}
        for name, (a, b) in make_factors(purpose).items():
            named[f"diffusion_model.{name}.lora_A.weight"] = a
            named[f"diffusion_model.{name}.lora_B.weight"] = b
        model, _ = comfy.sd.load_lora_for_models(model, None, named, strength, 0)
    return model


def schedule_both(subject: Strengths, motion: Strengths) -> list[ScheduledLora]:
    return [
        ScheduledLora(make_pairs(purpose), strengths)
        for purpose, strengths in zip(RANKS, (subject, motion), strict=True)
    ]


def make_variants(model) -> dict:
    """Return the MODELs to compare by name, the stock loader's first."""
    stock = apply_stock(model, dict.fromkeys(RANKS, 1.0))

    def apply_ours(*strengths: Strengths, constant: str = AUTO):
        return apply_loras(model, schedule_both(*strengths), StrengthSchedule(0.7), constant).model

    return {
        STOCK: stock,
        AGAIN: stock,
        "constant": apply_ours(CONSTANT, CONSTANT),
        "subject switched": apply_ours(SWITCHED, CONSTANT),
        "both switched": apply_ours(*BOTH_SWITCHED),
        "both switched, on the fly": apply_ours(*BOTH_SWITCHED, constant=ON_THE_FLY),
    }


def make_pair_variants(model) -> dict:
    """Return the high-noise and the low-noise MODEL by name; both experts are the same random weights."""
    stock = [
        apply_stock(model, {"subject": subject, "motion": 1.0}) for subject in (SWITCHED.early, SWITCHED.late)
    ]

    def at_hand_over(constant: str) -> list:
        loras = schedule_both(SWITCHED, CONSTANT)
        sides = (at_constant_strength(loras, side) for side in ("early", "late"))
        return [apply_loras(model, side, StrengthSchedule(0.7), constant).model for side in sides]

    def switched(constant: str) -> list:
        loras = schedule_both(*BOTH_SWITCHED)
        return [apply_loras(model, loras, StrengthSchedule(0.7), constant).model] * 2

    return {
        STOCK: stock,
        "constant": at_hand_over(AUTO),
        "constant, on the fly": at_hand_over(ON_THE_FLY),
        "both switched": switched(AUTO),
        "both switched, on the fly": switched(ON_THE_FLY),
    }


def time_steps(model, steps: int) -> list[float]:
    """Return the CPU seconds of every step but the first, in which the model is loaded."""
    marks = []
    random_wan.sample(model, steps=steps, cfg=1.0, callback=lambda *_: marks.append(time.process_time()))
    return [after - before for before, after in zip(marks, marks[1:], strict=False)]


def count_flops(model, run) -> int:
    """Return the FLOPs of a run, without those of merging, which is done before it."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        run(model)
    return counter.get_total_flops()


def count_pair(models: list) -> int:
    """Return the FLOPs of 4 steps, of which each expert makes 2."""
    cut = PAIR_STEPS // 2
    parts = {"start_step": 0, "last_step": cut}, {"start_step": cut, "last_step": PAIR_STEPS}
    return sum(
        count_flops(model, lambda m, part=part: random_wan.sample(m, steps=PAIR_STEPS, cfg=1.0, **part))
        for model, part in zip(models, parts, strict=True)
    )


def time_swap() -> tuple[float, int, int]:
    """Time one replacement and restoration of the forwards at the depth of the 1.3B.

    Returns the seconds, the number of modules, and the bytes of their factors in bfloat16.
    """
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    set_size("1.3B")
    random_wan.BLOCKS = BLOCKS_OF_1_3B
    holder = torch.nn.Module()
    with torch.device("meta"):
        holder.diffusion_model = WanModel(
            model_type="t2v", dim=random_wan.DIM, ffn_dim=random_wan.FFN, num_heads=12,
            num_layers=BLOCKS_OF_1_3B, text_dim=random_wan.TEXT_DIM, operations=comfy.ops.disable_weight_init,
        )  # fmt: skip
    lora = make_pairs("subject")
    swap = CallTimeSwap([ScheduledLora(lora, SWITCHED)], lambda _: TPoint(0.7))
    state = swap._get_state(holder)
    started = time.process_time()
    for _ in range(SWAPS):
        with replaced_forwards(state.make_replacements(holder)):
            pass
    seconds = (time.process_time() - started) / SWAPS
    return seconds, len(lora), sum(2 * (pair.a.numel() + pair.b.numel()) for pair in lora.values())


def compare_times(rounds: int, steps: int) -> None:
    """Print time and FLOPs of the variants on one model."""
    set_size("1.3B")
    models = make_variants(random_wan.load(random_wan.dit_state()))
    seconds: dict[str, list[list[float]]] = {name: [] for name in models}
    order, draw = list(models), random.Random(0)
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            seconds[name].append(time_steps(models[name], steps))
    flops = {
        name: count_flops(model, lambda m: random_wan.sample(m, steps=steps, cfg=1.0))
        for name, model in models.items()
    }
    middle = {name: statistics.median(sum(parts, [])) for name, parts in seconds.items()}
    for name, parts in seconds.items():
        by_round = (
            statistics.median(own) / statistics.median(stock)
            for own, stock in zip(parts, seconds[STOCK], strict=True)
        )
        print(
            f"{name:26} {middle[name]:7.3f} s a step, {middle[name] / middle[STOCK]:.3f} x stock "
            f"(by round {', '.join(f'{ratio:.2f}' for ratio in by_round)}); "
            f"{flops[name] / flops[STOCK]:.4f} x its FLOPs"
        )


def compare_pair() -> None:
    """Print the FLOPs of the pair's variants."""
    set_size("14B")
    model = random_wan.with_shift(random_wan.load(random_wan.dit_state()), PAIR_SHIFT)
    flops = {name: count_pair(models) for name, models in make_pair_variants(model).items()}
    for name, count in flops.items():
        print(f"pair, {name:26} {count / flops[STOCK]:.4f} x the FLOPs of stock")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--rounds", type=int, default=3, help="Number of times that every variant is sampled. (default: 3)"
    )
    options.add_argument(
        "--steps", type=int, default=10, help="Sampling steps; of 10, 3 are before T_point. (default: 10)"
    )
    options.add_argument(
        "--latent",
        type=int,
        nargs=3,
        default=(1, 30, 52),
        help="Latent frames, height and width. (default: 1 30 52)",
    )
    given = options.parse_args()
    random_wan.LATENT = (1, 16, *given.latent)
    compare_pair()
    compare_times(given.rounds, given.steps)
    swap, modules, size = time_swap()
    print(
        f"swap and restore of {modules} linears: {1000 * swap:.2f} ms an evaluation; "
        f"factors on the device {size / 1e6:.0f} MB in bfloat16"
    )


if __name__ == "__main__":
    main()
