"""What a variant of WAN takes besides latents, noise level and text."""

import torch

from smra_core.training.batches import collate, describe_shape, move_to_device
from smra_core.training.mora import MotionSample
from smra_core.wan.condition import list_parts, move_inputs, stack_inputs

ONE = {"c_concat": torch.zeros(20, 3, 2, 2), "strengths": [0.5, 1.0], "references": [torch.zeros(16, 4)]}
OTHER = {"c_concat": torch.ones(20, 3, 2, 2), "strengths": [0.5, 1.0], "references": [torch.ones(16, 4)]}


def sample(extra):
    return MotionSample("x", torch.zeros(16, 3, 2, 2), torch.zeros(3, 4), torch.zeros(0), extra)


def test_tensors_are_stacked_also_in_lists_and_constants_stay():
    stacked = stack_inputs([ONE, OTHER])
    assert stacked["c_concat"].shape == (2, 20, 3, 2, 2)
    assert stacked["c_concat"].mean((1, 2, 3, 4)).tolist() == [0, 1]
    assert stacked["strengths"] == [0.5, 1.0]
    assert [part.mean((1, 2)).tolist() for part in stacked["references"]] == [[0, 1]]


def test_samples_share_a_batch_only_where_names_shapes_and_constants_agree():
    assert describe_shape(sample(ONE)) == describe_shape(sample(OTHER))
    assert describe_shape(sample(ONE)) != describe_shape(sample({}))
    assert describe_shape(sample(ONE)) != describe_shape(sample(ONE | {"strengths": [0.5, 0.9]}))
    assert describe_shape(sample(ONE)) != describe_shape(sample(ONE | {"c_concat": torch.zeros(20, 3, 2, 4)}))


def test_a_batch_holds_the_extra_inputs_of_its_samples():
    batch = move_to_device(collate([sample(ONE), sample(OTHER)]), torch.device("cpu"))
    assert batch.extra["c_concat"].shape == (2, 20, 3, 2, 2) and batch.given is None
    given = torch.tensor([True, False, False])
    both = collate([sample(ONE)._replace(given=given), sample(OTHER)._replace(given=~given)])
    assert both.given.tolist() == [[True, False, False], [False, True, True]]


def test_only_numbers_of_floating_point_change_their_precision():
    moved = move_inputs(ONE | {"index": torch.tensor([3])}, torch.device("cpu"), torch.float64)
    assert moved["c_concat"].dtype == moved["references"][0].dtype == torch.float64
    assert moved["index"].dtype == torch.int64 and moved["strengths"] == [0.5, 1.0]


def test_parts_are_listed_by_name_whatever_their_order():
    swapped = dict(reversed(ONE.items()))
    names = [name for name, _ in list_parts(swapped)]
    assert names == ["c_concat", "references0", "strengths0", "strengths1"]
