"""Share of SuRA and MoRA in the LoRA's gradient on the miniature, at the paper's weights.

    python -m tests.benchmarks.gradient_shares

For both held-out subjects and both held-out motions, the norm of the weighted alignment loss's gradient is
divided by that of the velocity loss's, on the adapters that both reach, at ten noise levels. The LoRAs are
moved a little off their start.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from smra_core.lora.adapter import Injection, Lora, init_lora, injected
from smra_core.miniature.bench.run import Bench, open_bench
from smra_core.miniature.small_settings import MOTION, SUBJECT
from smra_core.miniature.weight_paths import DINOV2_FILE, SEA_RAFT_FILE
from smra_core.miniature.world.scenes import HELD_OUT_MOTIONS, HELD_OUT_SUBJECTS
from smra_core.training.batches import collate
from smra_core.training.motion import load_objective, prepare_motion
from smra_core.training.objective import Objective
from smra_core.training.subject import prepare_subject
from smra_core.training.sura import SubjectObjective

LEVELS = 10
OFF_START = 0.003
"""Standard deviation of B. It starts at zero, where A has no gradient."""


def move_off_start(lora: Lora, generator: torch.Generator) -> list[Tensor]:
    """Move a LoRA off its start; return its parameters."""
    for pair in lora.values():
        torch.nn.init.normal_(pair.b, std=OFF_START, generator=generator)
    return [parameter for pair in lora.values() for parameter in pair.parameters()]


def measure_shares(
    bench: Bench, objective: Objective, lora: Lora, samples: Sequence, velocity: str, aligned: str
) -> Iterator[tuple[float, float]]:
    """Yield each noise level with the gradient norm of the aligned loss over that of the velocity loss."""
    generator = torch.Generator().manual_seed(0)
    parameters = move_off_start(lora, generator)
    batch = collate(samples)
    with bench.backend.denoiser_for_training() as denoiser, injected(denoiser.linears(), Injection(lora)):
        for level in range(LEVELS):
            sigma = torch.full((len(samples),), (level + 0.5) / LEVELS)
            noise = torch.randn(batch.latents.shape, generator=generator)
            losses = objective.losses(denoiser, batch, sigma, noise, generator)
            gradients = {
                name: torch.autograd.grad(
                    objective.weights[name] * losses[name].mean(), parameters, retain_graph=True,
                    allow_unused=True,
                )
                for name in (velocity, aligned)
            }  # fmt: skip
            reached = [i for i, gradient in enumerate(gradients[aligned]) if gradient is not None]
            norms = [
                torch.cat([gradients[name][i].flatten() for i in reached]).norm()
                for name in (aligned, velocity)
            ]
            yield sigma[0].item(), (norms[0] / norms[1]).item()


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(Path(folder))
        backend, spec = bench.backend, bench.backend.spec
        draw = torch.Generator().manual_seed(0)
        for subject in HELD_OUT_SUBJECTS:
            pictures = bench.write_images(subject)
            samples = prepare_subject(backend, pictures, DINOV2_FILE)
            objective = SubjectObjective(SUBJECT, spec.dim, samples[0].features.shape[-1])
            lora = init_lora(spec, SUBJECT.plan, SUBJECT.rank, draw)
            print_shares(
                "SuRA", subject, list(measure_shares(bench, objective, lora, samples, "region", "sura"))
            )
        for motion in HELD_OUT_MOTIONS:
            flow = SEA_RAFT_FILE
            (sample,) = prepare_motion(backend, [bench.write_clip(motion)], flow)
            objective = load_objective(backend, flow, MOTION, [sample])
            lora = init_lora(spec, MOTION.plan, MOTION.rank, draw)
            print_shares(
                "MoRA", motion, list(measure_shares(bench, objective, lora, [sample], "temporal", "mora"))
            )


def print_shares(loss: str, case: str, levels: Iterable[tuple[float, float]]) -> None:
    print(f"{loss}, {case}: " + ", ".join(f"{part:.3f} at {sigma:.2f}" for sigma, part in levels))


if __name__ == "__main__":
    main()
