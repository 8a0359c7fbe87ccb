"""Memory and time of a training step, compared with ComfyUI's own TrainLoraNode.

COMFYUI_PATH=... <the host's python> tests/benchmarks/host_train_node.py

Model, rank and size are the same. Each kind runs in a process of its own, because memory that was freed is
not returned. Both train every linear of all blocks at one rank on the latents of one picture, in float32,
with blocks checkpointed. ComfyUI's node also trains norms, biases and the layers outside of the blocks, which
it cannot leave out; its bypass_mode computes a LoRA beside the weights, as this pack does. Weights are
random, and the net has two blocks of the 1.3B's width, so that a CPU can run it.

A step is the median of the times between two updates of the optimizer: loading and cleaning up are left out.
"""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BLOCKS, DIM, FFN, RANK, STEPS, SIDE, TEXT = 2, 1536, 8960, 32, 4, 64, 512
KINDS = ("ours", "host", "bypass")
LABELS = {
    "ours": "train_lora of this pack on the graph's MODEL",
    "host": "TrainLoraNode",
    "bypass": "TrainLoraNode with bypass_mode",
}


def measure_resident() -> int:
    """Return the bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak(threading.Thread):
    """Measures the largest resident memory while it runs; loading the file needed more before."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.bytes = max(self.bytes, measure_resident())


def time_updates() -> list[float]:
    """Return a list that gets the process's CPU time at each update of an AdamW."""
    import torch

    update, times = torch.optim.AdamW.step, []

    def step(optimizer, *args, **kwargs):
        times.append(time.process_time())
        return update(optimizer, *args, **kwargs)

    torch.optim.AdamW.step = step
    return times


def train_with_pack(model, latents, context) -> None:
    import torch
    from random_wan import pack

    host, lora = pack("nodes.host.denoiser"), pack("smra_core.lora.adapter")
    plan = pack("smra_core.lora.plan")
    trainer, sura = (pack(f"smra_core.training.{name}") for name in ("trainer", "sura"))
    settings = sura.SubjectSettings(plan=plan.ALL_LAYERS, rank=RANK, sura_weight=0.0)
    sample = sura.SubjectSample("x", latents[0], context[0], torch.ones(1, 1, SIDE, SIDE), torch.zeros(0, 1))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        host.training_denoiser(model) as denoiser,
    ):
        pairs = lora.init_lora(denoiser.spec, settings.plan, RANK, torch.Generator().manual_seed(0))
        objective = sura.SubjectObjective(settings, denoiser.spec.dim, 1)
        trainer.train_lora(
            denoiser, pairs, objective, [sample], trainer.TrainSettings(steps=STEPS, accumulate=1)
        )


def train_with_host(model, latents, context, bypass: bool) -> None:
    from comfy_extras.nodes_train import TrainLoraNode

    values = dict(
        model=model, latents={"samples": latents}, positive=[[context, {}]], batch_size=1, steps=STEPS,
        grad_accumulation_steps=1, learning_rate=1e-4, rank=RANK, optimizer="AdamW", loss_function="MSE",
        seed=0, training_dtype="fp32", lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=True, checkpoint_depth=2, offloading=False, existing_lora="[None]",
        bucket_mode=False, bypass_mode=bypass,
    )  # fmt: skip
    TrainLoraNode.execute(**{name: [value] for name, value in values.items()})


def measure(kind: str) -> None:
    """Train in one of the two ways, and print a line."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "host" / "inside"))
    import conftest  # noqa: F401 - makes host and pack importable
    import random_wan
    import torch

    random_wan.DIM, random_wan.FFN = DIM, FFN
    with tempfile.TemporaryDirectory() as folder:
        state = random_wan.dit_state(blocks=BLOCKS)
        size = sum(value.numel() * value.element_size() for value in state.values())
        model = random_wan.load_dit(Path(folder), state)
        del state
        generator = torch.Generator().manual_seed(1)
        with torch.inference_mode():
            latents = torch.randn(1, 16, 1, SIDE, SIDE, generator=generator)
            context = torch.randn(1, TEXT, 4096, generator=generator)
            before, peak, updates = measure_resident(), Peak(), time_updates()
            peak.start()
            if kind == "ours":
                train_with_pack(model, latents, context)
            else:
                train_with_host(model, latents, context, bypass=kind == "bypass")
        peak.done.set()
        seconds = statistics.median(after - before for before, after in itertools.pairwise(updates))
    growth = (peak.bytes - before) / 2**20
    print(
        f"RESULT {LABELS[kind]}: weights {size / 2**20:.0f} MiB, peak {peak.bytes / 2**20:.0f} MiB resident, "
        f"{growth:.0f} of them since the model was loaded, {seconds:.2f} CPU s a step"
    )


def main() -> None:
    for kind in KINDS:
        done = subprocess.run([sys.executable, __file__, kind], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        print(lines[0].removeprefix("RESULT ") if lines else done.stderr[-3000:])


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
