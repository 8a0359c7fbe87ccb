"""Time and memory of work on a device, and the row of the table that they make."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch

from smra_core.training.trainer import is_out_of_memory

GB = 1e9


@dataclass
class Row:
    """One line of the table. Bytes are 0 where the device does not count them."""

    part: str
    case: str
    seconds: list[float] = field(default_factory=list)
    """Seconds of each piece of work after the first, which also loads kernels."""
    first_seconds: float = 0.0
    samples: int = 1
    """Samples that one piece of work processes."""
    held: int = 0
    """Bytes allocated before the work: the weights of all models that it needs."""
    peak: int = 0
    """Largest number of bytes allocated at any time."""
    reserved: int = 0
    """Bytes that the allocator had taken from the card by the end."""
    outside: int = 0
    """Bytes of the card that are taken by other than the allocator: the CUDA context and loaded kernels."""
    kept: int = 0
    """Bytes allocated after the work, when its models are freed; anything but 0 is a leak."""
    told: dict[str, int] = field(default_factory=dict)
    """Bytes that were told before the work, by part."""
    base: str = ""
    """Case of the same part that the time is compared with."""
    note: str = ""

    @property
    def median(self) -> float | None:
        """Median of the seconds, or None if nothing was timed."""
        return statistics.median(self.seconds) if self.seconds else None

    def to_json(self) -> dict:
        """Return all fields as JSON values."""
        return asdict(self)


class Meter:
    """Marks of time between pieces of work, each after the device has finished."""

    def __init__(self, device: torch.device):
        self.device, self.marks = device, []

    def mark(self, *_) -> None:
        """Note the time once all work so far is done; takes any arguments, so that it can be a callback."""
        wait_for(self.device)
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Seconds between one mark and the next."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_allocated(device: torch.device) -> int:
    """Return the bytes of all tensors on a card; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def warm_up(device: torch.device) -> None:
    """Make libraries allocate what they keep from their first use on, so that no row is charged with it."""
    x = torch.ones(1, 8, 8, 64, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(8, 8, 3, 3, 3, device=device, dtype=torch.bfloat16)
    (torch.nn.functional.conv3d(x, weight) @ torch.ones_like(x[0, 0, 0, :62, :8])).sum().backward()
    wait_for(device)


def free_all(device: torch.device) -> None:
    """Free what is no longer referenced on a card, and give unused memory back to it."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def measured(row: Row, device: torch.device) -> Iterator[Meter]:
    """Fill a row with the time and memory of the work inside, which calls `mark` after each piece.

    Running out of memory ends the work, and the row says so. Models must be made before and freed after.
    """
    meter = Meter(device)
    row.held = count_allocated(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    meter.mark()
    try:
        yield meter
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        row.note = "out of memory"
    seconds = meter.seconds
    row.first_seconds, row.seconds = (seconds[0] if seconds else 0.0), seconds[1:]
    if device.type == "cuda":
        row.peak = torch.cuda.max_memory_allocated(device)
        row.reserved = torch.cuda.max_memory_reserved(device)
        free, total = torch.cuda.mem_get_info(device)
        row.outside = total - free - torch.cuda.memory_reserved(device)


def run_case(row: Row, device: torch.device, work: Callable[[Row], None]) -> Row:
    """Run work that makes its own models, fills a row and frees them; note what is left behind."""
    free_all(device)
    before = count_allocated(device)
    try:
        work(row)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        row.note = "out of memory while the models were made"
    free_all(device)
    row.kept = count_allocated(device) - before
    return row
