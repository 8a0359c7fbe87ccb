"""Rows of a step and of an evaluation where memory is short: blocks and their inputs wait in host memory,
weights stay in 8 bits; and where it is not: blocks keep what they compute.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch

from smra_core.standalone.waiting_blocks import count_kept_bytes
from smra_core.training.decode_memory import DecodeChoice
from smra_core.training.memory import estimate_motion_memory
from smra_core.training.mora import MotionObjective
from smra_core.wan import feed_forward
from smra_core.wan.recompute import KeptBlocks
from smra_core.wan.spec import WanSpec
from tests.benchmarks.gpu.meter import Row
from tests.benchmarks.gpu.models import make_motion_sample
from tests.benchmarks.gpu.sampling import sample_measured
from tests.benchmarks.gpu.sizes import Sizes
from tests.benchmarks.gpu.stored_models import FP8, HALF, INT8, left_in_ram, make_stored_denoiser
from tests.benchmarks.gpu.training_steps import train_measured

ONE_CHUNK = 10**9
"""Tokens of a chunk that no step has."""


class Arm(NamedTuple):
    """One way to keep the weights and what blocks compute."""

    case: str
    form: str = HALF
    resident: float = 1.0
    """Share of the blocks that stay on the card."""
    inputs_wait: bool = False
    kept: Callable[[int], KeptBlocks] | None = None
    """What the blocks keep, by their number; by default their inputs alone."""
    is_chunked: bool = True
    as_in_comfyui: bool = False


ARMS = (
    Arm("16 bit, all blocks on the card"),
    Arm("the same again"),
    Arm("half of the blocks wait", resident=0.5),
    Arm("all blocks wait", resident=0),
    Arm("all blocks wait, as ComfyUI leaves them", as_in_comfyui=True),
    Arm("all inputs wait", inputs_wait=True),
    Arm("all blocks and inputs wait", resident=0, inputs_wait=True),
    Arm("feed-forward nets in one piece", is_chunked=False),
    Arm("attention is kept", kept=lambda blocks: KeptBlocks(0, blocks)),
    Arm("everything is kept", kept=KeptBlocks),
    Arm("fp8, all blocks on the card", FP8),
    Arm("fp8, all blocks wait", FP8, 0),
    Arm("INT8, all blocks on the card", INT8),
    Arm("INT8, all blocks wait", INT8, 0),
)
SAMPLED = ("16 bit, all blocks on the card", "half of the blocks wait", "all blocks wait",
           "fp8, all blocks on the card", "fp8, all blocks wait", "INT8, all blocks wait")  # fmt: skip


def list_short_memory_cases(
    sizes: Sizes, device: torch.device, steps: int
) -> Iterator[tuple[Row, Callable[[Row], None]]]:
    """Yield a plain motion step in each way, and an evaluation while sampling in some, on a few blocks of the
    large model.
    """
    spec = replace(sizes.large, blocks=sizes.few_blocks)
    name = f"{spec.blocks} blocks of {spec.name}"
    for arm in ARMS:
        yield Row(f"step, {name}", arm.case, base=ARMS[0].case), _train(sizes, spec, arm, device, steps)
    for arm in ARMS:
        if arm.case in SAMPLED:
            yield (
                Row(f"evaluation while sampling, {name}", arm.case, base=ARMS[0].case),
                _sample(sizes, spec, arm, device),
            )


def _train(sizes: Sizes, spec: WanSpec, arm: Arm, device: torch.device, steps: int) -> Callable[[Row], None]:
    settings = replace(sizes.motion, mora_weight=0.0)

    def work(row: Row) -> None:
        if arm.kept is None and arm.is_chunked:
            row.told = tell(sizes, spec, settings, arm)
        with _opened(sizes, spec, arm, device) as denoiser:
            denoiser.kept_blocks = arm.kept(spec.blocks) if arm.kept else KeptBlocks()
            if arm.inputs_wait:
                denoiser.kept_blocks = KeptBlocks(staying=0)
            objective = MotionObjective(settings, None, None)
            train_measured(row, denoiser, objective, [make_motion_sample(sizes)], settings, steps)

    return work


def tell(sizes: Sizes, spec: WanSpec, settings, arm: Arm) -> dict[str, int]:
    """Return the bytes that the program tells of the step, by part."""
    resident = 0 if arm.as_in_comfyui else round(arm.resident * spec.blocks)
    kept = count_kept_bytes(spec, sizes.dtype.itemsize, float(arm.form != HALF))
    way = replace(kept, resident=resident, inputs_wait=arm.inputs_wait)
    choice = DecodeChoice(settings.decode, False, 0.0)
    return estimate_motion_memory(spec, settings, choice, way, 1, sizes.dtype.itemsize).parts


def _sample(sizes: Sizes, spec: WanSpec, arm: Arm, device: torch.device) -> Callable[[Row], None]:
    def work(row: Row) -> None:
        with _opened(sizes, spec, arm, device) as denoiser:
            sample_measured(row, denoiser, sizes, device)

    return work


@contextmanager
def _opened(sizes: Sizes, spec: WanSpec, arm: Arm, device: torch.device):
    """Make the model of an arm, and give its memory back at the end."""
    resident = round(arm.resident * spec.blocks)
    denoiser = make_stored_denoiser(spec, sizes.dtype, device, arm.form, resident)
    chunk, feed_forward.CHUNK_TOKENS = (
        feed_forward.CHUNK_TOKENS, sizes.chunk_tokens if arm.is_chunked else ONE_CHUNK,
    )  # fmt: skip
    try:
        with left_in_ram(denoiser, device) if arm.as_in_comfyui else nullcontext():
            yield denoiser
    finally:
        feed_forward.CHUNK_TOKENS = chunk
        denoiser.close()
