"""Check of every evaluation of the model: each linear that carries a LoRA has been called.

A LoRA that is added to a linear's output is lost without a word where the linear is computed without calling
it: by a kernel that reads its weight, by a fused linear, or by the replay of a recorded CUDA graph.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import nn

from ...smra_core.wan.spec import parse_linear

log = logging.getLogger("smrabooth")


class Reachable(Protocol):
    """What is added to one linear, with a mark of whether the linear was called."""

    name: str
    """Native name of the linear."""
    reached: bool
    """Whether the linear has been called since the mark was last cleared."""


class ReachCheck:
    """Record of which linears of a LoRA the evaluations of one run called.

    A whole evaluation may be skipped (EasyCache, TeaCache), and so may a whole block (skip-layer guidance).
    A part of a block may not, nor may a block compute an output without calling its linears.
    """

    def __init__(self, additions: Iterable[Reachable]):
        self._additions = list(additions)
        self._blocks = sorted({_get_block(addition) for addition in self._additions})
        self._forwards: dict[int, tuple[tuple, Callable]] = {}
        """Replaced `forward` of each block, with the block and function that it was made for; kept because a
        compiler guards on its identity.
        """
        self._computed: set[int] = set()
        """Blocks that returned something other than their input in this evaluation."""
        self._unused: set[int] = set(self._blocks)
        """Blocks of which no linear was called since the strengths last changed."""
        self._evaluations = 0

    def start_evaluation(self) -> None:
        """Clear the marks before an evaluation."""
        self._computed.clear()
        for addition in self._additions:
            addition.reached = False

    def make_replacements(self, blocks: nn.Module) -> Iterator[tuple[nn.Module, Callable]]:
        """Yield the blocks that carry a LoRA, and a `forward` for each that notes whether it computed."""
        for index in self._blocks:
            block = blocks.get_submodule(str(index))
            block = getattr(block, "_orig_mod", block)  # of a block that is compiled by itself
            original = block.forward
            key = block, getattr(original, "__func__", original)
            known = self._forwards.get(index)
            if known is None or known[0] != key:
                known = self._forwards[index] = (key, self._note_computation(index, original))
            yield block, known[1]

    def _note_computation(self, index: int, original: Callable) -> Callable:
        """Return a block's forward that notes when it returns anything but its input."""

        def forward(x, *args, **kwargs):
            result = original(x, *args, **kwargs)
            # A compiler follows the call into the linears, whose marks are enough there.
            if not torch.compiler.is_compiling() and result is not x:
                self._computed.add(index)
            return result

        return forward

    def finish_evaluation(self, changed: bool) -> None:
        """Raise RuntimeError when an evaluation lost a part of the LoRA; `changed` says whether the strengths
        differed from those of the evaluation before.
        """
        reached = {_get_block(addition) for addition in self._additions if addition.reached}
        if changed:
            self._unused = set(self._blocks)
        self._unused -= reached
        missed = [addition.name for addition in self._additions if not addition.reached]
        ran = reached | self._computed
        if not ran and self._evaluations == 0:
            lost = missed  # The first evaluation of a run has nothing that a cache could return.
        else:
            lost = [name for name in missed if parse_linear(name).block in ran]
        self._evaluations += 1
        if lost:
            raise RuntimeError(_describe_loss(lost, len(self._additions)))

    def finish_run(self) -> None:
        """Warn of blocks whose LoRA had no effect at the run's last strengths, and begin anew."""
        if self._evaluations and self._unused:
            blocks = ", ".join(map(str, sorted(self._unused)))
            log.warning(
                "Sparse LoRA: since the strengths were last set, every evaluation skipped the model's "
                "block(s) %s, so that the LoRA had no effect there. Another node skips them: a "
                "skip-layer node, or a cache such as EasyCache. Give it fewer blocks or steps to skip, if "
                "that is not intended.", blocks,
            )  # fmt: skip
        self._unused, self._evaluations = set(self._blocks), 0


def _get_block(addition: Reachable) -> int:
    return parse_linear(addition.name).block


def _describe_loss(lost: list[str], total: int) -> str:
    return (
        f"{len(lost)} of {total} layers of the LoRA cannot be reached on this model, first {lost[0]}: "
        "another node or this checkpoint's format computes them without calling them (a fused linear, or a "
        "recorded CUDA graph). Set constant_lora to 'merge' in SMRA Loader Options, connect it to the Sparse "
        "LoRA Loader, and use the loader's model_early and model_late outputs with two KSampler (Advanced) "
        "nodes."
    )
