"""Put samples into batches: every sample equally often, and only samples of one shape in a batch."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..wan.condition import describe_input, list_parts, move_inputs, stack_inputs
from .random_stream import make_generator

Sample = TypeVar("Sample", bound=NamedTuple)


def choose_batch(samples: Sequence[Sample], batch_size: int, seed: int, number: int) -> list[Sample]:
    """Return the samples of batch `number` of a run, from 0: they depend on seed and number alone."""
    shapes = [describe_shape(sample) for sample in samples]
    return [samples[index] for index in order_batch(shapes, batch_size, seed, number)]


def describe_shape(sample: Sample) -> Hashable:
    """Return what two samples must have in common to be in one batch: the shapes of their tensors, and the
    names, shapes and constants of what a variant of WAN takes besides.
    """
    return tuple(_describe(part) for part in sample)


def _describe(part: Any) -> Hashable:
    if isinstance(part, Mapping):
        return tuple((name, describe_input(value)) for name, value in list_parts(part))
    return tuple(part.shape) if isinstance(part, Tensor) else None


def order_batch(shapes: Sequence[Hashable], batch_size: int, seed: int, number: int) -> list[int]:
    """Return the indices of batch `number`, from 0, of samples with these shapes.

    Samples of one shape, or in batches of one, come in epochs: every sample once, in a new random order.
    Otherwise they come in cycles. In a cycle every sample comes equally often, as often as it takes to fill
    batches of one shape each, and the batches of all shapes come in one random order.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    if batch_size == 1 or len(groups) == 1:
        return list(_follow_epochs(len(shapes), batch_size, seed, number))
    rounds = math.lcm(*(batch_size // math.gcd(batch_size, len(group)) for group in groups.values()))
    cycle, place = divmod(number, rounds * len(shapes) // batch_size)
    generator = make_generator(seed, "cycle", cycle)
    batches: list[list[int]] = []
    for group in groups.values():
        orders = (torch.randperm(len(group), generator=generator).tolist() for _ in range(rounds))
        drawn = [group[position] for order in orders for position in order]
        batches += [drawn[start : start + batch_size] for start in range(0, len(drawn), batch_size)]
    return batches[int(torch.randperm(len(batches), generator=generator)[place])]


def _follow_epochs(count: int, batch_size: int, seed: int, number: int) -> Iterator[int]:
    for position in range(number * batch_size, (number + 1) * batch_size):
        epoch, index = divmod(position, count)
        order = torch.randperm(count, generator=make_generator(seed, "epoch", epoch))
        yield int(order[index])


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples of one shape: tensors along a new first axis, None stays None, everything else becomes a
    list.
    """
    columns = [list(column) for column in zip(*samples, strict=True)]
    return type(samples[0])(*map(_stack, columns))


def _stack(column: list) -> Any:
    if isinstance(column[0], Tensor):
        return torch.stack(column)
    if isinstance(column[0], Mapping):
        return stack_inputs(column)
    return None if all(part is None for part in column) else column


def move_to_device(batch: Sample, device: torch.device) -> Sample:
    """Return the batch with its tensors on a device."""
    return type(batch)(*(move_inputs(part, device) for part in batch))
