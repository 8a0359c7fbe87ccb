"""What fits which card: the account of a training step's memory, told without a model or a card.

    python -m tests.benchmarks.memory_table [--parts]

For each model, size and card, the way to decode and the way to keep the weights that the program would take,
and the memory that it tells. `--parts` prints the parts of each account instead.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from smra_core.training.decode_memory import estimate, list_modes
from smra_core.training.memory import (
    GIB,
    DitMemory,
    MemoryAccount,
    choose_resident_blocks,
    count_model_bytes,
    estimate_motion_memory,
    estimate_subject_memory,
)
from smra_core.training.motion_settings import MotionSettings
from smra_core.training.sura import SubjectSettings
from smra_core.wan.spec import WAN_1_3B, WAN_5B, WAN_14B, WanSpec

CARDS = (12, 16, 24, 32)
SIZES = {
    "picture 512x512": SubjectSettings(),
    "49 frames 576x320": MotionSettings(),
    "81 frames 832x480": MotionSettings(width=832, height=480, frames=81),
}
MODELS = {WAN_1_3B: "1.3B", WAN_5B: "TI2V-5B", WAN_14B: "14B"}
FORMS = {"16 bit": 1.0, "8 bit": 0.5}
"""Bytes of a weight's form over those of half precision."""
USUAL_FORMS = {WAN_1_3B: 1.0, WAN_5B: 1.0, WAN_14B: 0.5}
"""The same of the forms that most people load, for the table in the pack's README."""


class Way(NamedTuple):
    """A way to run a step, and its account by how many blocks stay on the card."""

    name: str
    account_of: Callable[[int | None], MemoryAccount]
    least: MemoryAccount
    """The account with the weights and the inputs of all blocks in host memory."""


def list_ways(spec: WanSpec, settings: SubjectSettings | MotionSettings, share: float) -> list[Way]:
    """List the ways to run a step, the fastest first; `share` is that of the weights' bytes."""
    model = DitMemory(round(share * count_model_bytes(spec)))

    def make_way(name: str, account_of: Callable[[DitMemory], MemoryAccount]) -> Way:
        least = account_of(model.take_least())
        return Way(name, lambda kept: account_of(replace(model, resident=kept)), least)

    if isinstance(settings, SubjectSettings):
        return [make_way("", lambda dit: estimate_subject_memory(spec, settings, dit))]
    ways = []
    for decode, recompute in list_modes("auto"):
        choice = estimate(replace(settings, decode=decode), decode, recompute, spec)
        name = f"{decode}, recomputing" if recompute else decode
        ways.append(make_way(name, partial(estimate_motion_memory, spec, settings, choice)))
    return ways


def describe_fit(spec: WanSpec, settings, share: float, memory: float) -> str:
    """Return the first way that fits with all blocks, or else with the most; or what the least one lacks."""
    ways = list_ways(spec, settings, share)
    for way in ways:
        if way.account_of(None).fits(memory):
            return _describe(way, way.account_of(None), "")
    for way in ways:
        if way.account_of(0).fits(memory):
            kept = choose_resident_blocks(spec, way.account_of, memory)
            return _describe(way, way.account_of(kept), f"{spec.blocks - kept} of {spec.blocks} blocks wait")
    for way in ways:
        if way.least.fits(memory):
            return _describe(way, way.least, "all blocks and their inputs wait")
    least = min((way.least for way in ways), key=lambda account: account.total)
    return f"no: {least.total / GIB:.1f} GiB at least"


def _describe(way: Way, account: MemoryAccount, waiting: str) -> str:
    return ", ".join(part for part in (f"{account.total / GIB:.1f} GiB", way.name, waiting) if part)


def render_fits(shares: Mapping[WanSpec, float]) -> str:
    """Return a table of three rows a card, given the share of the weights' bytes of each model."""
    lines = [f"| card | step | {' | '.join(MODELS.values())} |", "|---" * (2 + len(MODELS)) + "|"]
    for card in CARDS:
        for name, settings in SIZES.items():
            cells = [describe_fit(spec, settings, shares[spec], card * GIB) for spec in MODELS]
            lines.append(f"| {card} GB | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_parts() -> str:
    """Return a table of the parts of each account, all blocks on the card."""
    names = [name for name in MemoryAccount.__dataclass_fields__ if name not in ("streamed", "host")]
    head = " | ".join(name.replace("_", " ") for name in names)
    lines = [f"| model | step | decode | {head} | sum |", "|---" * (4 + len(names)) + "|"]
    for spec, model in MODELS.items():
        for name, settings in SIZES.items():
            for way in list_ways(spec, settings, 1.0):
                account = way.account_of(None)
                parts = " | ".join(f"{getattr(account, part) / GIB:.2f}" for part in names)
                lines.append(f"| {model} | {name} | {way.name} | {parts} | {account.total / GIB:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", action="store_true", help="Print the parts of each account, in GiB.")
    if parser.parse_args().parts:
        print(render_parts())
        return
    for form, share in FORMS.items():
        print(f"Weights of {form}:\n\n{render_fits(dict.fromkeys(MODELS, share))}\n")


if __name__ == "__main__":
    main()
