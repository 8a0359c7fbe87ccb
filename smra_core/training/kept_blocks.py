"""Choose how many blocks keep their activations in a step, by the memory that is free beside all else."""

import logging
import math
from pathlib import Path

import torch

from ..wan.recompute import KeptBlocks
from ..wan.spec import TEXT_TOKENS, WanSpec
from .cost import count_input_bytes
from .memory import GIB

log = logging.getLogger("smrabooth")

_WHOLE = 50
"""Tensors of tokens x dim, those of the text among the tokens, that a block keeps if nothing is recomputed:
at most 49 in half precision (some are float32) and 37 in float32, counted on blocks of the 1.3B's width with
a LoRA of rank 32 on all linears.
"""
_ATTENTION = 1.05
"""Tensors of tokens x dim that a block keeps with the output of self-attention and its normalizers."""
_GAPS = 1.3
"""Factor of all activations that must be free (as in memory.MemoryAccount.fits)."""
_RESERVE = 500_000_000
"""Bytes that are left to other programs."""
_HOST_RESERVE = 2_000_000_000
"""Bytes of host memory that are left free."""


def choose_kept_blocks(
    spec: WanSpec,
    tokens: int,
    batch: int,
    value_bytes: int,
    spare: float,
    free: int = 0,
    host: float = 0.0,
) -> KeptBlocks:
    """Return the blocks that keep activations, given the spare bytes beside a step that keeps none.

    `free` is the number of blocks that are kept whole at no cost: 1 where the backward pass begins right
    after the DiT, as the last block would be recomputed at once into as much memory, and else 0.

    Where all blocks fit whole, all are kept. Otherwise self-attention comes first: at 9360 tokens it saves
    18000 operations a byte, attention to the text 1000, and the rest of a block 400. What is left then goes
    to whole blocks, one by one. Where bytes are missing, `spare` is negative, and the inputs of as many
    blocks wait in host memory, of which `host` bytes may be taken.
    """
    if spare < 0 and host:
        size = count_input_bytes(spec, tokens, batch, value_bytes)
        waiting = int(min(spec.blocks, math.ceil(-spare / (_GAPS * size)), host / size))
        return KeptBlocks(staying=spec.blocks - waiting)
    values = max(0.0, spare) / (spec.dim * value_bytes * batch * _GAPS)
    whole_values, attention_values = _WHOLE * (tokens + TEXT_TOKENS), _ATTENTION * tokens
    if free + int(values / whole_values) >= spec.blocks:
        return KeptBlocks(whole=spec.blocks)
    others = spec.blocks - free
    attention = int(values / attention_values)
    if attention < others:
        return KeptBlocks(free, attention)
    whole = int((values - others * attention_values) / (whole_values - attention_values))
    return KeptBlocks(free + whole, others - whole)


def measure_spare_memory(device: torch.device, needed: float) -> float:
    """Return the bytes that are free beside those that a step needs; 0 where that cannot be told."""
    free = _measure_free_memory(device)
    return 0.0 if free is None else free - _GAPS * needed - _RESERVE


def measure_host_memory(device: torch.device) -> float:
    """Return the bytes of host memory that what blocks keep may take beside a card; 0 on other devices."""
    if device.type != "cuda":
        return 0.0
    free = _measure_free_memory(torch.device("cpu"))
    return math.inf if free is None else max(0.0, free - _HOST_RESERVE)


def _measure_free_memory(device: torch.device) -> float | None:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines())
    return 1024 * float(lines["MemAvailable"].split()[0]) if "MemAvailable" in lines else None


def log_choice(kept: KeptBlocks, spec: WanSpec, spare: float) -> None:
    """Log what the blocks keep, and where."""
    recomputed = spec.blocks - kept.whole - kept.attention
    if kept.staying is not None:
        log.info(
            "blocks: all are recomputed, and the inputs of %d of %d wait in host memory, as %.1f GiB are "
            "missing on the device", spec.blocks - kept.staying, spec.blocks, -spare / GIB,
        )  # fmt: skip
        return
    log.info(
        "blocks: %d keep all activations, %d that of self-attention, %d none (%.1f GiB spare)",
        kept.whole, kept.attention, recomputed, max(0.0, spare) / GIB,
    )  # fmt: skip
