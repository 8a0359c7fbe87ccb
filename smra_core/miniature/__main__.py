"""Training of the miniature from scratch, and its checks: `python -m smra_core.miniature COMMAND`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

IDEAS = {
    "jitter": "motion clips in other colors against leak",
    "confidence": "the flow loss on trusted pixels alone, behind a pillar",
    "roles": "roles of a LoRA ranked by finished videos and by predictions",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code 0."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = build_parser().parse_args(argv)
    args.run(args)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; each sets `run` to the function that runs it."""
    parser = argparse.ArgumentParser(prog="python -m smra_core.miniature", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, text, run in (
        ("vae", "Train the video VAE and write its weights.", run_vae),
        ("dit", "Train the DiT on the VAE's latents and write its weights.", run_dit),
        ("flow", "Train the tiny SEA-RAFT and write its weights.", run_flow),
        ("patches", "Train the tiny DINOv2 and write its weights.", run_patches),
    ):
        stage = commands.add_parser(name, help=text, description=text)
        add = stage.add_argument
        add(
            "--build",
            type=Path,
            default=Path("smra_build"),
            help="Folder that the state of the training is kept in. (default: smra_build)",
        )
        add(
            "--weights",
            type=Path,
            help="Folder that the weights are written to. (default: the package's own)",
        )
        add("--processes", type=int, default=2, help="Number of processes, for vae and dit. (default: 2)")
        add("--seed", type=int, default=0, help="Random seed. (default: 0)")
        stage.set_defaults(run=run)
    text = "Check that the miniature shows what it is asked for."
    gates = commands.add_parser("gates", help=text, description=text)
    gates.add_argument(
        "--clips", type=int, default=140, help="Number of clips for each of VAE and DiT. (default: 140)"
    )
    gates.add_argument("--sheet", type=Path, help="PNG file that sampled clips are drawn to. (default: none)")
    gates.set_defaults(run=run_gates)
    text = "Compare variants of the method on held-out subjects and motions."
    bench = commands.add_parser("bench", help=text, description=text)
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("smra_bench"),
        help="Folder for LoRAs and measured clips. (default: smra_bench)",
    )
    bench.add_argument(
        "--quick", action="store_true", help="Measure one case with one seed: a direction, no evidence."
    )
    bench.add_argument(
        "--paper-metrics", action="store_true",
        help="Score the main variants by the paper's metrics instead, with the LoRAs of the folder.",
    )  # fmt: skip
    bench.set_defaults(run=run_bench_command)
    text = "Check the meters of leak and stillness on LoRAs that were planted to leak and to still."
    planted = commands.add_parser("planted", help=text, description=text)
    planted.add_argument(
        "--out", type=Path, default=Path("smra_planted"), help="Folder for the LoRAs. (default: smra_planted)"
    )
    planted.add_argument("--pairs", type=int, default=20, help="Number of pairs. (default: 20)")
    planted.set_defaults(run=run_planted_command)
    text = "Try an idea of others, or compare two measures of layers."
    trial = commands.add_parser("try", help=text, description=text)
    trial.add_argument("idea", choices=IDEAS, help="; ".join(f"{name}: {IDEAS[name]}" for name in IDEAS))
    trial.add_argument(
        "--out", type=Path, default=Path("smra_trials"), help="Folder for the LoRAs. (default: smra_trials)"
    )
    trial.add_argument(
        "--seeds", type=int, default=2, help="Seeds of confidence, pairs of jitter. (default: 2)"
    )
    trial.set_defaults(run=run_trial)
    text = "Train a LoRA alone in many ways, and measure each: motions, for a GPU, or subjects."
    arms = commands.add_parser("arms", help=text, description=text)
    arms.add_argument(
        "--out",
        type=Path,
        default=Path("smra_bench"),
        help="Folder for the measured clips. (default: smra_bench)",
    )
    arms.add_argument("--device", default="cuda", help="Device that trains and samples. (default: cuda)")
    arms.add_argument(
        "--subject", action="store_true", help="Train subject LoRAs, one after the other; a CPU is enough."
    )
    arms.add_argument("--processes", type=int, default=8, help="Processes that measure clips. (default: 8)")
    arms.set_defaults(run=run_arms_command)
    return parser


def run_vae(args: argparse.Namespace) -> None:
    from .recipe.export import export_vae
    from .recipe.train_vae import train_vae

    train_vae(args.build, args.processes, args.seed)
    print(export_vae(args.build, args.weights))


def run_dit(args: argparse.Namespace) -> None:
    from .recipe.export import export_dit
    from .recipe.train_dit import train_dit

    train_dit(args.build, args.processes, args.seed)
    print(export_dit(args.build, args.weights))


def run_flow(args: argparse.Namespace) -> None:
    from .recipe.export import export_flow
    from .recipe.train_flow import train_flow

    train_flow(args.build, args.seed)
    print(export_flow(args.build, args.weights))


def run_patches(args: argparse.Namespace) -> None:
    from .recipe.export import export_patches
    from .recipe.train_patches import train_patches

    train_patches(args.build, args.seed)
    print(export_patches(args.build, args.weights))


def run_gates(args: argparse.Namespace) -> None:
    from .recipe.gates import (
        NEEDED_DIT,
        NEEDED_VAE,
        check_dit,
        check_encoders,
        check_gait,
        check_vae,
        draw_samples,
    )

    print("VAE reconstructions", check_vae(args.clips).render_table(NEEDED_VAE), check_gait(), sep="\n")
    print("DiT samples", check_dit(args.clips).render_table(NEEDED_DIT), sep="\n")
    print("encoders", check_encoders(), sep="\n")
    if args.sheet:
        print(draw_samples(args.sheet))


def run_planted_command(args: argparse.Namespace) -> None:
    from .bench.planted import run_planted

    print(run_planted(args.out, args.pairs))


def run_bench_command(args: argparse.Namespace) -> None:
    from .bench.paper_metrics import run_paper_metrics
    from .bench.run import FULL, QUICK, run_bench
    from .bench.table import read_clips, render_differences, render_table

    size = QUICK if args.quick else FULL
    if args.paper_metrics:
        print(run_paper_metrics(args.out, size))
        return
    clips = read_clips(run_bench(args.out, size))
    print(render_table(clips), render_differences(clips), sep="\n\n")


def run_trial(args: argparse.Namespace) -> None:
    from .bench.color_jitter import run_jitter
    from .bench.flow_confidence import run_confidence
    from .bench.role_videos import run_roles

    trials = {
        "jitter": lambda: run_jitter(args.out, args.seeds),
        "confidence": lambda: run_confidence(args.out, args.seeds),
        "roles": lambda: run_roles(args.out),
    }
    print(trials[args.idea]())


def run_arms_command(args: argparse.Namespace) -> None:
    import torch

    from .bench.arm_kinds import MOTIONS, SUBJECTS
    from .bench.arm_table import render_arms, render_differences
    from .bench.run_arms import run_arms
    from .bench.table import read_clips

    kind = SUBJECTS if args.subject else MOTIONS
    clips = read_clips(run_arms(kind, args.out, torch.device(args.device), args.processes))
    for steps in kind.steps:
        print(render_arms(clips, steps), "", sep="\n")
        print(render_differences(clips, kind.references, steps, kind.column), "", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
