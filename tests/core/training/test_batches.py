from collections import Counter
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from smra_core.training.batches import choose_batch, collate, describe_shape, order_batch
from smra_core.training.random_stream import make_generator

SHORT, LONG, WIDE = "short", "long", "wide"


class Sample(NamedTuple):
    name: str
    latents: Tensor
    mask: Tensor | None = None


def make_sample(name, frames=1, mask=None):
    return Sample(name, torch.full((2, frames), float(frames)), mask)


def batches(shapes, batch_size, count, seed=0):
    return [order_batch(shapes, batch_size, seed, number) for number in range(count)]


def test_each_epoch_shows_every_sample_once_in_an_order_of_its_own():
    places = sum(batches([None] * 8, 2, 12), [])
    epochs = [places[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_runs_from_before_there_were_shapes_repeat():
    recorded = [[0, 1], [2, 2], [1, 0], [1, 2], [0, 1], [0, 2]]
    assert batches([None] * 3, 2, 6, seed=7) == recorded


def test_a_batch_may_be_larger_than_the_data():
    (order,) = batches([None] * 2, 5, 1)
    assert len(order) == 5 and set(order) == {0, 1}


def test_batches_of_one_take_samples_of_all_shapes_in_epochs():
    assert batches([SHORT, LONG, WIDE], 1, 9) == batches([None] * 3, 1, 9)


@pytest.mark.parametrize("shapes, batch_size, cycle", [
    ([SHORT, SHORT, LONG, LONG], 2, 2), ([SHORT, SHORT, SHORT, LONG], 2, 4), ([SHORT, LONG, WIDE], 4, 3),
    ([SHORT] * 4 + [LONG] * 2 + [WIDE], 4, 7),
])  # fmt: skip
def test_a_batch_has_one_shape_and_each_cycle_shows_every_sample_equally_often(shapes, batch_size, cycle):
    drawn = batches(shapes, batch_size, 3 * cycle)
    assert all(len(batch) == batch_size and len({shapes[i] for i in batch}) == 1 for batch in drawn)
    for start in range(0, 3 * cycle, cycle):
        counts = Counter(sum(drawn[start : start + cycle], []))
        assert set(counts) == set(range(len(shapes))) and len(set(counts.values())) == 1


def test_the_order_of_the_shapes_is_mixed_and_depends_on_the_seed():
    shapes = [SHORT] * 4 + [LONG] * 4
    orders = {tuple(shapes[batch[0]] for batch in batches(shapes, 2, 4, seed)) for seed in range(20)}
    assert len(orders) > 3
    assert batches(shapes, 2, 40) != batches(shapes, 2, 40, seed=1)
    assert batches(shapes, 2, 40)[17] == order_batch(shapes, 2, 0, 17)


def test_samples_are_grouped_by_their_tensors_and_by_what_is_missing():
    data = [make_sample("a"), make_sample("b", 2), make_sample("c"), make_sample("d", mask=torch.ones(1))]
    shapes = [describe_shape(sample) for sample in data]
    assert shapes[0] == shapes[2] and len(set(shapes)) == 3
    drawn = [choose_batch(data, 2, 0, number) for number in range(4)]
    assert {tuple(sorted({sample.name for sample in batch})) for batch in drawn} == {
        ("a", "c"), ("b",), ("d",),
    }  # fmt: skip


def test_collating_stacks_tensors_keeps_names_and_leaves_none():
    batch = collate([make_sample("a", 3), make_sample("b", 3)])
    assert batch.name == ["a", "b"] and batch.latents.shape == (2, 2, 3) and batch.mask is None


def test_a_steps_randomness_depends_on_its_numbers_alone():
    draw = lambda *parts: torch.rand(3, generator=make_generator(*parts)).tolist()  # noqa: E731
    assert draw(0, 1, 0) == draw(0, 1, 0)
    assert len({tuple(draw(*parts)) for parts in ((0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 10))}) == 4
