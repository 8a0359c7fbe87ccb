"""Whether copies of waiting blocks hide behind a step's arithmetic, told from sizes alone.

    python -m tests.benchmarks.stream_arithmetic

For each model, size and card where blocks must wait: the bytes that a step copies to the card, the DiT's
operations in it, and the highest speed of a card at which the step takes at most 1.15 times as long as if all
blocks were on the card.
"""

from smra_core.training.cost import count_input_bytes, count_step_flops
from smra_core.training.memory import GIB, choose_resident_blocks, count_block_bytes
from smra_core.wan.block_stream import ROOMS
from smra_core.wan.spec import WanSpec

from .memory_table import FORMS, MODELS, SIZES, list_ways

CARDS, LINKS = (12, 16, 24), (25, 12.5)
"""Sizes of cards, and GB a second of PCIe 4.0 x16 and of x8."""
SLOWER = 1.15


def describe(spec: WanSpec, size: str, card: int, share: float) -> str | None:
    """Return a row of the table, or None where all blocks fit, or where nothing does."""
    settings = SIZES[size]
    ways = list_ways(spec, settings, share)
    if any(way.account_of(None).fits(card * GIB) for way in ways):
        return None
    tokens = spec.latents.count_tokens(getattr(settings, "frames", 1), settings.width, settings.height)
    inputs, way = 0, next((way for way in ways if way.account_of(0).fits(card * GIB)), None)
    if way is None:
        inputs = spec.blocks * count_input_bytes(spec, tokens)
        way = next((way for way in ways if way.least.fits(card * GIB)), None)
    if way is None:
        return None
    waiting = spec.blocks - choose_resident_blocks(spec, way.account_of, card * GIB)
    copied = 2 * (max(0, waiting - ROOMS) * count_block_bytes(spec, 2 * share) + inputs)
    flops = count_step_flops(spec, tokens)
    speeds = " | ".join(f"{SLOWER * flops * link * 1e9 / copied / 1e12:.0f}" for link in LINKS)
    return (
        f"| {card} GB | {MODELS[spec]} | {size} | {way.name} | {waiting} of {spec.blocks} | "
        f"{copied / 1e9:.1f} | {flops / 1e12:.0f} | {speeds} |"
    )


def list_rows(share: float) -> list[str]:
    """Return the rows of the table, for weights that take this share of half precision's bytes."""
    rows = [describe(spec, size, card, share) for card in CARDS for spec in MODELS for size in SIZES]
    return [row for row in rows if row is not None]


def main() -> None:
    for form, share in FORMS.items():
        print(f"\nWeights of {form}:\n")
        print("| card | model | step | decode | blocks wait | GB a step | TFLOP of the DiT | "
              "TFLOP/s at 25 GB/s | at 12.5 GB/s |\n" + "|---" * 9 + "|")  # fmt: skip
        print("\n".join(list_rows(share)))


if __name__ == "__main__":
    main()
