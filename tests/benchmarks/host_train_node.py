"""Memory and time of a training step, ours against the host's own TrainLoraNode, on one model in one process.

Run with the host's interpreter: COMFYUI_PATH=… python tests/benchmarks/host_train_node.py [ours|host]
Both train every linear of the blocks at one rank on one picture's latents; the host also trains norms and
biases, which it cannot leave out. Start one process each: memory that was freed is not given back.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

INSIDE = Path(__file__).parents[1] / "host" / "inside"
sys.path[:0] = [str(INSIDE)]
import conftest  # noqa: E402, F401 - makes host and pack importable
import torch  # noqa: E402
import training_models  # noqa: E402
from training_models import dit_state, load_dit, pack  # noqa: E402

BLOCKS, RANK, STEPS, SIDE = 30, 16, 4, 16
training_models.DIM, training_models.FFN = 512, 2048


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak(threading.Thread):
    """Largest resident memory while it runs; loading the file needed more before."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.bytes = max(self.bytes, resident())


def ours(model, latents, context) -> None:
    host_wan, lora = pack("nodes.host_wan"), pack("smra_core.lora")
    sparse, trainer, sura = (pack(f"smra_core.{name}") for name in ("sparse", "trainer", "sura"))
    settings = sura.SubjectSettings(plan=sparse.ALL_LAYERS, rank=RANK, sura_weight=0.0)
    sample = sura.SubjectSample("x", latents[0], context[0], torch.ones(1, 1, SIDE, SIDE), torch.zeros(0, 1))
    with torch.inference_mode(False), torch.enable_grad(), host_wan.training_denoiser(model) as denoiser:
        pairs = lora.init_lora(denoiser.spec, settings.plan, RANK, torch.Generator().manual_seed(0))
        objective = sura.SubjectObjective(settings, denoiser.spec.dim, 1)
        trainer.train_lora(
            denoiser, pairs, objective, [sample], trainer.TrainSettings(steps=STEPS, accumulate=1)
        )


def of_the_host(model, latents, context) -> None:
    from comfy_extras.nodes_train import TrainLoraNode

    values = dict(
        model=model, latents={"samples": latents}, positive=[[context, {}]], batch_size=1, steps=STEPS,
        grad_accumulation_steps=1, learning_rate=1e-4, rank=RANK, optimizer="AdamW", loss_function="MSE",
        seed=0, training_dtype="fp32", lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=True, checkpoint_depth=2, offloading=False, existing_lora="[None]",
        bucket_mode=False, bypass_mode=False,
    )  # fmt: skip
    TrainLoraNode.execute(**{name: [value] for name, value in values.items()})


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "ours"
    with tempfile.TemporaryDirectory() as folder:
        state = dit_state(blocks=BLOCKS)
        size = sum(value.numel() * value.element_size() for value in state.values())
        model = load_dit(Path(folder), state)
        del state
        generator = torch.Generator().manual_seed(1)
        with torch.inference_mode():
            latents = torch.randn(1, 16, 1, SIDE, SIDE, generator=generator)
            context = torch.randn(1, 32, 4096, generator=generator)
            before, started, peak = resident(), time.process_time(), Peak()
            peak.start()
            (ours if kind == "ours" else of_the_host)(model, latents, context)
        seconds = time.process_time() - started
        peak.done.set()
    growth = (peak.bytes - before) / 2**20
    print(
        f"{kind}: weights {size / 2**20:.0f} MiB, peak +{growth:.0f} MiB, {seconds / STEPS:.2f} CPU s a step"
    )


if __name__ == "__main__":
    main()
