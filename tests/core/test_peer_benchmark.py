"""The benchmark beside other trainers, at a tiny size: this project's trainer and peft's do the same work."""

from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks.peers.__main__ import print_differences, print_table
from tests.benchmarks.peers.ours import TRAINERS as OURS
from tests.benchmarks.peers.peers import train_peft
from tests.benchmarks.peers.turns import Ended
from tests.benchmarks.peers.work import Sizes, Work, write_weights

SIZES, SIDE, STEPS = Sizes(2, 128, 128, 1), 32, 2


class Recorded:
    """Turns of a trainer in this process, of which it takes two."""

    def __init__(self):
        self.velocity, self.steps = None, 0

    def begin(self, velocity):
        self.velocity = torch.tensor(velocity)

    def end_step(self):
        self.steps += 1
        if self.steps == STEPS:
            raise Ended


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "dit.safetensors"
    write_weights(path, SIZES)
    return Work(SIZES, path, SIDE)


@pytest.mark.parametrize("trainer", [OURS["ours"], OURS["ours-all"], train_peft])
def test_every_trainer_starts_from_the_same_velocity_and_trains_until_it_is_ended(trainer, work):
    turns = Recorded()
    with pytest.raises(Ended):
        trainer(work, None, turns)
    assert turns.steps == STEPS
    reference = Recorded()
    with pytest.raises(Ended):
        train_peft(work, None, reference)
    assert torch.allclose(turns.velocity, reference.velocity, atol=1e-5) and turns.velocity.std() > 0.1


def make_trainer(name, seconds, velocity=1.0):
    steps = [{"seconds": each, "flops": 2e9, "bytes": 3 * 2**20} for each in (9.0, *seconds)]
    return SimpleNamespace(name=name, about={"velocity": [velocity]}, steps=steps)


def test_the_table_divides_times_of_one_round_and_leaves_the_first_step_out(capsys):
    print_table([make_trainer("ours", [2.0, 3.0, 4.0]), make_trainer("peft", [4.0, 4.0, 4.0])])
    shown = capsys.readouterr().out
    assert "| peft | 4.00 (4.00..4.00) | 0.75 | 0.50 0.75 1.00 | 2.0 | 3 |" in shown
    assert "ours / peft: 0.75" in shown


def test_trainers_of_different_models_are_refused():
    with pytest.raises(ValueError, match="not run the same model"):
        print_differences([make_trainer("ours", []), make_trainer("peft", [], velocity=1.1)])
