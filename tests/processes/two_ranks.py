"""Trains a toy in two processes, as torchrun starts them, for test_ranks.py: `python two_ranks.py FOLDER`.

The processes are forked from this one, which has imported but not computed: a fork of one that has computed
with MKL hangs.
"""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

import torch
import torch._dynamo  # once, and not in each process
from torch import nn
from toy_models import ToyDenoiser

from smra_core.lora.adapter import init_lora
from smra_core.lora.plan import SUBJECT
from smra_core.training.followed_run import FollowedRun
from smra_core.training.ranks import ALONE, RankLost, join_ranks
from smra_core.training.run_folder import RunFolder
from smra_core.training.sura import SubjectObjective, SubjectSample, SubjectSettings
from smra_core.training.train_settings import TrainSettings
from smra_core.training.trainer import train_lora

STEPS, PROCESSES, STOP = 3, 2, 2
GRID, DIM, TEXT, FEATURES = 4, 8, 6, 5


def train(folder, ranks=ALONE, on_step=None):
    """Train the toy as one of the ranks, as run_job does; return its state's tensors."""
    denoiser, kind = ToyDenoiser(), RunFolder if ranks.is_first else FollowedRun
    state = train_lora(
        denoiser,
        init_lora(denoiser.spec, SUBJECT, 2, torch.Generator().manual_seed(0)),
        SubjectObjective(SubjectSettings(projector_width=7, rank=2), DIM, FEATURES),
        [make_sample(number) for number in range(3)],
        TrainSettings(STEPS, batch_size=1, accumulate=PROCESSES, learning_rate=1e-2),
        kind(folder, "toy", {}),
        on_step,
        ranks=ranks,
    )
    return state.copy_tensors()


def make_sample(number):
    generator = torch.Generator().manual_seed(number)
    latents, context, features = (
        torch.randn(shape, generator=generator)
        for shape in ((16, 1, GRID, GRID), (3, TEXT), (GRID * GRID // 4, FEATURES))
    )
    return SubjectSample(f"image {number}", latents, context, torch.ones(1, 1, GRID, GRID), features)


def train_whole(folder, ranks):
    torch.save(train(folder / "whole", ranks), folder / f"whole {ranks.rank}.pt")


def train_until_canceled(folder, ranks):
    """The first process gets what torchrun sends to all of them; the other one loses it."""

    def stop(info):
        if ranks.is_first and info.step == STOP:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(folder / "canceled", ranks, stop)
    except (KeyboardInterrupt, RankLost) as error:
        (folder / f"canceled {ranks.rank}").write_text(f"{type(error).__name__} {error}", "utf-8")


def sum_parts(folder, ranks):
    """Sum gradients of which one process has no part, and pass values around."""
    both, one, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.tensor([1.0, 2.0 + ranks.rank])
    one.grad = None if ranks.is_first else torch.tensor([4.0, 5.0])
    ranks.sum_gradients([both, one, none])
    sums = [None if each.grad is None else each.grad.tolist() for each in (both, one, none)]
    passed = [ranks.gather(ranks.rank), ranks.share(ranks.rank)]
    with ranks.let_first_prepare():
        passed.append((folder / "encoded").exists())
        (folder / "encoded").touch()
    torch.save([sums, passed], folder / f"sums {ranks.rank}.pt")


def train_until_killed(folder, ranks):
    def kill(info):
        if not ranks.is_first and info.step == STOP:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        train(folder / "killed", ranks, kill)
    except RankLost as error:
        (folder / f"killed {ranks.rank}").write_text(str(error), "utf-8")


PARTS = (train_whole, sum_parts, train_until_canceled, train_until_killed)


def run(folder, rank, ports):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    for part, port in zip(PARTS, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with join_ranks() as ranks:
            part(folder, ranks)


def find_free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == "__main__":
    context, ports = multiprocessing.get_context("fork"), find_free_ports(len(PARTS))
    processes = [
        context.Process(target=run, args=(Path(sys.argv[1]), rank, ports)) for rank in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
