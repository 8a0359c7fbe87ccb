"""The benchmark at equal memory: what it counts and divides, on numbers that can be worked out on paper."""

import logging
import sys
from contextlib import nullcontext

import torch

from smra_core.wan.recompute import KeptBlocks
from smra_core.wan.spec import WAN_1_3B
from tests.benchmarks.meters import Count, count_step
from tests.benchmarks.peers import equal_memory

BLOCKS, SHAPE, TOKENS = 2, (1, 16, 1, 4, 4), 4


def test_each_choice_keeps_more_than_the_one_before_and_fits_the_blocks():
    assert equal_memory.list_choices(30) == [
        KeptBlocks(0, 0), KeptBlocks(0, 29), KeptBlocks(0, 30), KeptBlocks(1, 29), KeptBlocks(2, 28),
    ]  # fmt: skip


def test_keeping_self_attention_saves_one_forward_pass_of_it_a_block(monkeypatch):
    # Attention of N tokens to N of width d takes 2 N N d FLOPs for the scores and as many for their sums.
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    recomputed, kept = (
        count_step(equal_memory.make_own_step(SHAPE, BLOCKS, KeptBlocks(0, blocks))).flops
        for blocks in (0, BLOCKS)
    )
    assert recomputed - kept == BLOCKS * 4 * TOKENS**2 * WAN_1_3B.dim


def test_a_row_has_the_cost_and_its_share_of_the_peers(capsys):
    equal_memory.print_row("ours", Count(flops=5e12, peak=3e9), Count(flops=8e12, peak=4e9))
    assert capsys.readouterr().out == "| ours | 5.00 | 0.625 | 3.000 | 0.750 |\n"


def test_all_choices_of_a_case_are_divided_by_the_peer_of_the_same_case(monkeypatch, capsys):
    """Here a latent costs 4 TFLOP, and ours 1 TFLOP less for each block that keeps something."""
    monkeypatch.setattr(logging, "disable", lambda: None)
    monkeypatch.setattr(torch, "autocast", None)  # which the command replaces
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["equal_memory", "--diffsynth", "nowhere", "--blocks", str(BLOCKS)])
    monkeypatch.setattr(equal_memory, "make_diffsynth_step", lambda shape, blocks: 4 * shape[2])
    monkeypatch.setattr(
        equal_memory, "make_own_step",
        lambda shape, blocks, kept: (4 - kept.whole - kept.attention) * shape[2],
    )  # fmt: skip
    monkeypatch.setattr(equal_memory, "count_step", lambda step: Count(flops=step * 1e12, peak=1e9))
    equal_memory.main()
    cells = [line.split(" | ")[1:3] for line in capsys.readouterr().out.splitlines() if " | " in line]
    shares = ["1.000", "1.000", "0.750", "0.500", "0.500", "0.500"]
    heading = ["TFLOP", "/ DiffSynth"]
    for latents, rows in ((1, cells[:7]), (13, cells[7:])):  # 49 frames are 13 latents
        assert rows == [heading, *([f"{4 * latents * float(share):.2f}", share] for share in shares)]
