"""Waiting blocks on a device that copies late: what is used too early, or too late, shows as NaN."""

import pytest
import torch

from smra_core.wan.block_stream import BlockStream, Copies, pack, spread_waiting
from smra_core.wan.stored_form import restore_values

BLOCKS = 5
CPU = torch.device("cpu")


class LateCopies(Copies):
    """Spoils the place that a copy goes to when it starts, and copies when it is waited for."""

    def __init__(self):
        super().__init__(CPU)
        self.started, self.stopped = [], False

    def start(self, sources, targets):
        for target in targets:
            target.fill_(torch.nan)
        self.started.append(int(sources[0].flatten()[0]))
        return sources, targets

    def finish(self, copy):
        if copy is not None:
            super().start(*copy)

    def stop(self):
        self.stopped = True


def weights_of(block):
    return [torch.full((2, 3), float(block)), torch.full((4,), float(block), dtype=torch.bfloat16)]


def make_stream(blocks=range(BLOCKS)):
    copies = LateCopies()
    return BlockStream({block: weights_of(block) for block in blocks}, copies), copies


def take_all(stream, blocks):
    for block in blocks:
        for _ in range(2):  # several linears of a block ask for it
            for taken, given in zip(stream.take(block), weights_of(block), strict=True):
                assert taken.dtype == given.dtype and torch.equal(taken, given)


def test_each_block_is_copied_once_each_way_but_for_the_two_where_the_direction_turns():
    stream, copies = make_stream()
    there_and_back = [*range(BLOCKS), *reversed(range(BLOCKS))]
    take_all(stream, there_and_back)
    assert copies.started == [0, 1, 2, 3, 4, 2, 1, 0]
    take_all(stream, there_and_back)
    assert copies.started[8:] == [2, 3, 4, 2, 1, 0]


def test_the_next_block_in_the_same_direction_is_copied_beside_the_work_of_one():
    stream, copies = make_stream()
    before = []
    for block in [*range(BLOCKS), *reversed(range(BLOCKS))]:
        stream.take(block)
        before.append(copies.started[-1])
    assert before == [1, 2, 3, 4, 4, 4, 2, 1, 0, 0]


def test_a_forward_pass_may_follow_another_one():
    stream, copies = make_stream()
    take_all(stream, [*range(BLOCKS), *range(BLOCKS)])
    assert copies.started == [*range(BLOCKS)] * 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_blocks_stay_where_there_is_room(count):
    stream, copies = make_stream(range(count))
    for _ in range(3):
        take_all(stream, [*range(count), *reversed(range(count))])
    assert len(copies.started) == (count if count < 3 else 3 + 5)
    assert stream.room_bytes == 512 * min(count, 2)


def test_blocks_may_be_taken_in_any_order():
    stream, _ = make_stream([1, 4, 6, 7])
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(4, (60,), generator=generator).tolist()
    take_all(stream, [stream.blocks[position] for position in order])


def test_a_copy_that_fails_is_made_again():
    stream, copies = make_stream()
    stream.take(0)
    start, copies.start = copies.start, lambda sources, targets: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stream.take(1)
    copies.start = start
    take_all(stream, range(BLOCKS))


def test_closing_waits_for_copies_and_frees_the_room():
    stream, copies = make_stream()
    stream.take(0)
    stream.close()
    assert copies.stopped and stream.room_bytes == 0


def test_a_device_without_streams_copies_at_once():
    stream = BlockStream({block: weights_of(block) for block in range(BLOCKS)}, Copies(CPU))
    take_all(stream, [*range(BLOCKS), *reversed(range(BLOCKS))])


def test_waiting_blocks_are_spread():
    assert spread_waiting(40, 40) == [] and spread_waiting(3, 0) == [0, 1, 2]
    assert spread_waiting(40, 30) == [2, 6, 10, 14, 18, 22, 26, 30, 34, 38]
    for resident in range(31):
        waiting = spread_waiting(30, resident)
        assert len(set(waiting)) == 30 - resident and all(0 <= block < 30 for block in waiting)


def test_packed_weights_are_equal_and_begin_at_aligned_places():
    piece, copies = pack(weights_of(3))
    assert all(torch.equal(copy, weight) for copy, weight in zip(copies, weights_of(3), strict=True))
    assert [copy.data_ptr() - piece.data_ptr() for copy in copies] == [0, 256]
    assert piece.nbytes == 512


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_as_the_scale_gives_the_bits_of_a_tensor(stored, dtype):
    generator = torch.Generator().manual_seed(0)
    values = (100 * torch.randn(64, 64, generator=generator)).to(stored)
    for scale in torch.logspace(-6, 1, 50) * torch.rand(50, generator=generator):
        by_number = restore_values(values, scale.item(), dtype)
        assert torch.equal(by_number, restore_values(values, scale, dtype))


def test_values_are_restored_by_way_of_float32():
    values = torch.tensor([[1.0, -2.0], [0.5, 448.0]]).to(torch.float8_e4m3fn)
    scale = torch.tensor([[0.1], [3.0]])
    expected = torch.tensor([[0.1, -0.2], [1.5, 1344.0]])
    assert torch.equal(restore_values(values, scale, torch.bfloat16), expected.bfloat16())
    assert torch.equal(restore_values(values, scale, torch.float32), expected)
    assert torch.equal(restore_values(values, None, torch.float32), values.float())
    plain = torch.ones(2, 2)
    assert restore_values(plain, None, torch.float32) is plain
