"""What the Sparse LoRA Loader costs while sampling, against the stock loader with the same LoRAs merged.

Runs in ComfyUI's own interpreter, on its sampler and the true width of WAN 2.1 1.3B, two blocks deep:

    COMFYUI_PATH=~/comfy/ComfyUI ~/comfy/ComfyUI/.venv/bin/python tests/benchmarks/sampling_cost.py

Arms take turns on one model, and times are the process's own, so that other programs matter less. Every
figure is a ratio to the stock loader in the same run.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "host" / "inside"))

import conftest  # noqa: E402, F401  (makes the host and the pack importable)
import tiny_wan  # noqa: E402
import torch  # noqa: E402
from smrabooth_pack.nodes.patching.apply_loras import apply_loras  # noqa: E402
from smrabooth_pack.nodes.patching.call_time_swap import CallTimeSwap  # noqa: E402
from smrabooth_pack.smra_core.lora.adapter import LoraPair, replaced_forwards  # noqa: E402
from smrabooth_pack.smra_core.lora.schedule import ScheduledLora, Strengths, StrengthSchedule, TPoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

tiny_wan.DIM, tiny_wan.FFN = 1536, 8960
RANKS = {"subject": 32, "motion": 64}
LAYERS = {"subject": tiny_wan.SUBJECT_LAYERS, "motion": tiny_wan.MOTION_LAYERS}
BLOCKS_OF_1_3B, SWAPS = 30, 100
SWITCHED, CONSTANT = Strengths(0.4, 0.8), Strengths.from_value(1.0)


def factors(purpose: str, names=None) -> dict:
    tiny_wan.RANK = RANKS[purpose]
    return tiny_wan.lora_tensors(LAYERS[purpose], seed=len(purpose), size=0.1, names=names)


def pairs(purpose: str, names=None) -> dict:
    return {name: LoraPair(a, b) for name, (a, b) in factors(purpose, names).items()}


def arms(model) -> dict:
    """MODELs to compare, the stock loader's first."""
    import comfy.sd

    stock = model
    for purpose in RANKS:
        named = {}
        for name, (a, b) in factors(purpose).items():
            named[f"diffusion_model.{name}.lora_A.weight"] = a
            named[f"diffusion_model.{name}.lora_B.weight"] = b
        stock, _ = comfy.sd.load_lora_for_models(stock, None, named, 1.0, 0)
    both = {purpose: pairs(purpose) for purpose in RANKS}

    def ours(subject: Strengths, motion: Strengths):
        scheduled = [ScheduledLora(both["subject"], subject), ScheduledLora(both["motion"], motion)]
        return apply_loras(model, scheduled, StrengthSchedule(0.7)).model

    return {
        "stock, merged": stock,
        "ours, constant": ours(CONSTANT, CONSTANT),
        "ours, subject switched": ours(SWITCHED, CONSTANT),
        "ours, both switched": ours(SWITCHED, Strengths(1.0, 0.5)),
    }


def step_seconds(model, steps: int) -> list[float]:
    """Process seconds of every step but the first, in which the model is loaded."""
    marks = []
    tiny_wan.sample(model, steps=steps, cfg=1.0, callback=lambda *_: marks.append(time.process_time()))
    return [after - before for before, after in zip(marks, marks[1:], strict=False)]


def flops_of_a_step(model) -> int:
    with FlopCounterMode(display=False) as counter:
        tiny_wan.sample(model, steps=1, cfg=1.0)
    return counter.get_total_flops()


def swap_seconds() -> tuple[float, int, int]:
    """Of replacing and restoring the forwards once at the depth of the 1.3B, modules, bytes in bfloat16."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    tiny_wan.BLOCKS = BLOCKS_OF_1_3B
    holder = torch.nn.Module()
    with torch.device("meta"):
        holder.diffusion_model = WanModel(
            model_type="t2v", dim=tiny_wan.DIM, ffn_dim=tiny_wan.FFN, num_heads=12, num_layers=BLOCKS_OF_1_3B,
            text_dim=tiny_wan.TEXT_DIM, operations=comfy.ops.disable_weight_init,
        )  # fmt: skip
    lora = pairs("subject")
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
    options.add_argument("--rounds", type=int, default=3, help="times that every arm is sampled")
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--latent", type=int, nargs=3, default=(1, 30, 52), help="frames, height, width")
    given = options.parse_args()
    tiny_wan.LATENT = (1, 16, *given.latent)
    models = arms(tiny_wan.load(tiny_wan.state_dict()))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(given.rounds):
        for name, model in models.items():
            seconds[name] += step_seconds(model, given.steps)
    stock = statistics.median(seconds["stock, merged"])
    # Merging takes products, too, but no part of a step: a first run leaves it done.
    flops = {}
    for name, model in models.items():
        tiny_wan.sample(model, steps=1, cfg=1.0)
        flops[name] = flops_of_a_step(model)
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{name:24} {middle:7.3f} s a step (least {min(values):.3f}, {len(values)} steps), "
            f"{middle / stock:.3f} x stock; {flops[name] / flops['stock, merged']:.4f} x its FLOPs"
        )
    swap, modules, size = swap_seconds()
    print(
        f"swap and restore of {modules} linears: {1000 * swap:.2f} ms an evaluation; "
        f"factors on the device {size / 1e6:.0f} MB in bfloat16"
    )


if __name__ == "__main__":
    main()
