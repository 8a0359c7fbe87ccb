"""A training over several GPUs: data-parallel processes, each of which computes a part of every step.

`torchrun` starts the processes, the ranks. Each takes its share of a step's batches (`accumulate`), the
gradients are summed over all, and every rank makes the same step. The first one alone writes. A run does not
depend on the number of ranks, so that it can be continued with another.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

log = logging.getLogger("smrabooth")

LONGEST_WAIT = timedelta(hours=4)
"""Time that a rank waits for the others, such as for the first one to encode all clips."""


class RankLost(ConnectionError):
    """Error for a training of which another process has ended."""

    exit_code = 75
    """Exit code of the command line: a temporary failure (EX_TEMPFAIL of sysexits.h)."""

    def __init__(self, cause: Exception):
        super().__init__(
            "Another process of this training has ended; its own message says why. The steps before are "
            f"kept, and the same command continues. ({str(cause).splitlines()[0]})"
        )


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, of which this is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    def take_batches(self, accumulate: int) -> Iterable[int]:
        """Return the numbers of the batches of a step that this rank computes."""
        return range(self.rank, accumulate, self.count)

    def check_batches(self, accumulate: int) -> None:
        """Raise ValueError if a step has fewer batches than there are ranks."""
        if accumulate < self.count:
            raise ValueError(
                f"accumulate is {accumulate}, and {self.count} processes need at least one batch of a step "
                f"each. Give --accumulate {self.count}, or start {accumulate} processes."
            )

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on all ranks; RankLost where one has ended."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _report_lost_ranks():
            dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """Return the first rank's value on all ranks."""
        return self.gather(value if self.is_first else None)[0]

    @contextmanager
    def let_first_prepare(self) -> Iterator[None]:
        """Run a with block on the first rank, then on the others, which find in the cache what it encoded."""
        if not self.is_first:
            self.gather(None)
        yield
        if self.is_first:
            self.gather(None)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks, in one reduction.

        One that no rank has stays None; one that a rank lacks counts as zero there.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        present = torch.tensor([float(each.grad is not None) for each in parameters]).to(gradients[0])
        flat = torch.cat([present, *(gradient.flatten() for gradient in gradients)])
        with _report_lost_ranks():
            dist.all_reduce(flat)
        present, *sums = flat.split([len(parameters), *(each.numel() for each in parameters)])
        for parameter, count, total in zip(parameters, present.tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter) if count else None


ALONE = Ranks()
"""A training in one process."""


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun has started for the duration of a with block; ALONE without torchrun.

    torchrun asks the processes to end when one of them has ended; here that is an interrupt, at which the
    training saves its last step. Further signals are ignored then.
    """
    if _count_processes() == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=LONGEST_WAIT)
    else:
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    if not ranks.is_first:
        log.setLevel(logging.WARNING)
    _set_signal_handler(_raise_interrupt)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def check_ranks(ranks: Ranks, device: torch.device) -> None:
    """Raise ValueError if torchrun has started what one process does, or if all ranks would share a GPU."""
    if ranks.count == 1 and _count_processes() > 1:
        raise ValueError(
            "torchrun has started this command several times, and only trainings compute on several GPUs. "
            "Start it with python -m smra_core."
        )
    if ranks.count > 1 and device.index is not None:
        raise ValueError(
            f"--device {device} is one GPU, and torchrun gives each process its own. Leave --device out."
        )


def _count_processes() -> int:
    """Return the number of processes that torchrun has started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _raise_interrupt(number: int, frame: Any) -> None:
    _set_signal_handler(
        signal.SIG_IGN
    )  # or the next one, of torchrun, would end the writing of the last state
    raise KeyboardInterrupt


def _set_signal_handler(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


@contextmanager
def _report_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        _set_signal_handler(signal.SIG_IGN)
        raise RankLost(error) from error
