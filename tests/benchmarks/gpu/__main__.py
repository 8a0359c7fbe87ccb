"""Run everything that needs a CUDA card, in at most eight minutes; print tables and write JSON.

    python -m tests.benchmarks.gpu [part ...] [--json FILE]

Weights are random and nothing is downloaded. Parts run in the order of their list until the time is used up;
what is left out is named. `--device cpu` runs the same code on tiny models, to try it without a card.
"""

import argparse
import importlib.util
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

NEEDED = ("diffusers", "timm", "einops", "safetensors", "transformers")
"""Packages without which no part can run."""
ROOT = Path(__file__).parents[3]
TESTS, TEST_SECONDS = "tests", 200


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"Parts to run, of {', '.join(PARTS)}. (default: all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="Time for everything. (default: 8)")
    parser.add_argument(
        "--steps", type=int, default=4, help="Training steps a case, the first of which is not timed."
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for tiny models. (default: cuda)")
    parser.add_argument(
        "--json", type=Path, default=Path("gpu.json"), help="File to write. (default: gpu.json)"
    )
    parser.add_argument("--profile", type=Path, help="File for a profile of some steps, if one is wanted.")
    parser.add_argument("--commit", help="Name of the commit, where git does not know it.")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"Part {unknown[0]!r} is not known; give some of {', '.join(PARTS)}.")
    return args


def run_tests(device: torch.device) -> str:
    """Run the tests of the card in a process of their own; return the last line, and print failures."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-rfEs", "--tb=short", "--durations=6"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired as error:
        print((error.stdout or b"").decode()[-3000:])
        return f"not finished after {TEST_SECONDS} s"
    print(done.stdout[-8000:], done.stderr[-2000:], flush=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"exit code {done.returncode}"


def list_cases(part: str, sizes, device: torch.device, steps: int) -> Iterator[tuple]:
    from tests.benchmarks.gpu.preparation import list_preparation_cases
    from tests.benchmarks.gpu.sampling import list_sampling_cases
    from tests.benchmarks.gpu.short_memory import list_short_memory_cases
    from tests.benchmarks.gpu.training_steps import list_large_cases, list_motion_cases, list_subject_cases

    return {
        "motion": lambda: list_motion_cases(sizes, device, steps),
        "short-memory": lambda: list_short_memory_cases(sizes, device, steps),
        "subject": lambda: list_subject_cases(sizes, device, steps + 6),
        "sampling": lambda: list_sampling_cases(sizes, device),
        "large": lambda: list_large_cases(sizes, device, 3),
        "preparation": lambda: list_preparation_cases(sizes, device),
    }[part]()


PARTS = (TESTS, "motion", "subject", "short-memory", "sampling", "large", "preparation")


def run_parts(
    parts, sizes, device: torch.device, steps: int, has_time: Callable[[], bool]
) -> tuple[list, list]:
    """Run the cases of these parts while there is time; return their rows, and what was left out."""
    from tests.benchmarks.gpu.meter import run_case, warm_up

    warm_up(device)
    rows, left_out = [], []
    for part in parts:
        for row, work in list_cases(part, sizes, device, steps):
            if not has_time():
                left_out.append(f"{row.part}: {row.case}")
                continue
            started = time.monotonic()
            rows.append(run_case(row, device, work))
            took = time.monotonic() - started
            print(f"{took:.0f} s: {row.to_json()}", file=sys.stderr, flush=True)
    return rows, left_out


def main() -> None:
    args = parse_arguments()
    started = time.monotonic()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"Nothing can run without {', '.join(missing)}. Install what pyproject.toml lists.")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("This torch sees no CUDA card. Give --device cpu to try the code on tiny models.")
    from tests.benchmarks.gpu.report import describe_machine, describe_sizes, render_tables, write_report
    from tests.benchmarks.gpu.sizes import PAPER, TINY

    logging.disable()
    torch.manual_seed(0)
    device = torch.device(args.device)
    sizes = TINY if device.type == "cpu" else PAPER
    parts = [part for part in PARTS if not args.parts or part in args.parts]
    tests = run_tests(device) if TESTS in parts else "not run"
    rows, left_out = run_parts(
        [part for part in parts if part != TESTS], sizes, device, args.steps,
        has_time=lambda: time.monotonic() - started < 60 * args.minutes,
    )  # fmt: skip
    if args.profile:
        from tests.benchmarks.gpu.profile import profile_steps

        args.profile.write_text(profile_steps(sizes, device))
    machine = describe_machine(device, args.commit)
    print(f"{machine}\n\n{describe_sizes(sizes)}\n\nGPU tests: {tests}\n\n{render_tables(rows)}")
    print("\n".join(["", "Left out:", *left_out]) if left_out else "", flush=True)
    notes = {"sizes": describe_sizes(sizes), "tests": tests, "left out": left_out}
    write_report(args.json, machine, rows, {**notes, "seconds": time.monotonic() - started})


if __name__ == "__main__":
    main()
