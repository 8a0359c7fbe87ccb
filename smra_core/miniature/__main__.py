"""Making the miniature anew and judging it: `python -m smra_core.miniature COMMAND`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = build_parser().parse_args(argv)
    args.run(args)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smra_core.miniature", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, text, run in (
        ("vae", "train the video VAE and write its weights", _vae),
        ("dit", "train the DiT on the VAE's latents and write its weights", _dit),
        ("flow", "train the tiny SEA-RAFT and write its weights", _flow),
        ("patches", "train the tiny DINOv2 and write its weights", _patches),
    ):
        stage = commands.add_parser(name, help=text)
        stage.add_argument("--build", type=Path, default=Path("smra_build"), help="(default: smra_build)")
        stage.add_argument("--weights", type=Path, help="folder to write to (default: the package's own)")
        stage.add_argument("--processes", type=int, default=2, help="for vae and dit (default: 2)")
        stage.add_argument("--seed", type=int, default=0)
        stage.set_defaults(run=run)
    gates = commands.add_parser("gates", help="does the miniature show what it is asked for")
    gates.add_argument("--clips", type=int, default=140, help="for each of VAE and DiT (default: 140)")
    gates.add_argument("--sheet", type=Path, help="also draw sampled clips to this PNG")
    gates.set_defaults(run=_gates)
    bench = commands.add_parser("bench", help="compare the method's parts on held-out subjects and motions")
    bench.add_argument("--out", type=Path, default=Path("smra_bench"), help="(default: smra_bench)")
    bench.add_argument("--quick", action="store_true", help="one case, one seed: a direction, no evidence")
    bench.set_defaults(run=_bench)
    return parser


def _vae(args: argparse.Namespace) -> None:
    from .recipe.export import export_vae
    from .recipe.train_vae import train_vae

    train_vae(args.build, args.processes, args.seed)
    print(export_vae(args.build, args.weights))


def _dit(args: argparse.Namespace) -> None:
    from .recipe.export import export_dit
    from .recipe.train_dit import train_dit

    train_dit(args.build, args.processes, args.seed)
    print(export_dit(args.build, args.weights))


def _flow(args: argparse.Namespace) -> None:
    from .recipe.export import export_flow
    from .recipe.train_flow import train_flow

    train_flow(args.build, args.seed)
    print(export_flow(args.build, args.weights))


def _patches(args: argparse.Namespace) -> None:
    from .recipe.export import export_patches
    from .recipe.train_patches import train_patches

    train_patches(args.build, args.seed)
    print(export_patches(args.build, args.weights))


def _gates(args: argparse.Namespace) -> None:
    from .recipe.gates import NEEDED_DIT, NEEDED_VAE, draw_samples, gate_dit, gate_teachers, gate_vae

    print("VAE reconstructions", gate_vae(args.clips).table(NEEDED_VAE), sep="\n")
    print("DiT samples", gate_dit(args.clips).table(NEEDED_DIT), sep="\n")
    print("teachers", gate_teachers(), sep="\n")
    if args.sheet:
        print(draw_samples(args.sheet))


def _bench(args: argparse.Namespace) -> None:
    from .bench.run import FULL, QUICK, run_bench
    from .bench.table import read_clips, table

    print(table(read_clips(run_bench(args.out, QUICK if args.quick else FULL))))


if __name__ == "__main__":
    sys.exit(main())
