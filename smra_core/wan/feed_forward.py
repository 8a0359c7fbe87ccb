"""The feed-forward net at the end of a DiT's block, in chunks of tokens.

Inside of it a token takes `ffn / dim` times as much memory as outside, three to six times, and the
backward pass needs four such tensors. Where the block is recomputed, the net is left to its own backward
pass, which recomputes and differentiates one chunk after the other. No operation is made more often.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from .recompute import is_checkpointed, is_recomputing, recomputing

CHUNK_TOKENS = 4096
"""Most tokens of a chunk. A product of so many rows is as fast on a card as a larger one."""


class ChunkedForward:
    """The `forward` of a feed-forward net in training, `... dim` to `... dim`.

    The chunks depend on the number of tokens alone, so that the result is the same bit for bit however much
    a block keeps.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], linears: Sequence[nn.Module]):
        """Take the net's forward, and its linears, whose forwards may list trained parameters."""
        self.forward, self.linears = forward, linears

    def __call__(self, x: Tensor) -> Tensor:
        chunks = math.ceil(math.prod(x.shape[:-1]) / CHUNK_TOKENS)
        if chunks < 2 or not torch.is_grad_enabled():
            return self.forward(x)
        rows = x.flatten(0, -2)
        size = math.ceil(len(rows) / chunks)
        if is_checkpointed():
            y = _Deferred.apply(rows, self.forward, size, *self._list_parameters())
        else:
            y = torch.cat([self.forward(chunk) for chunk in rows.split(size)])
        return y.view(x.shape)

    def _list_parameters(self) -> list[Tensor]:
        """Return the parameters of LoRAs that are on the linears."""
        found = (getattr(linear.forward, "list_parameters", None) for linear in self.linears)
        return [parameter for list_them in found if list_them is not None for parameter in list_them()]


class _Deferred(torch.autograd.Function):
    """A net of which nothing is computed when its block is recomputed, but in its backward pass."""

    @staticmethod
    def forward(ctx, rows: Tensor, run: Callable[[Tensor], Tensor], size: int, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.size, ctx.parameters = run, size, parameters
        ctx.save_for_backward(rows)
        if is_recomputing():
            return rows.new_full((), math.nan).expand(rows.shape)
        y = torch.empty_like(rows)
        # The linears run as in training only where there is a gradient; of its graph nothing is kept.
        with torch.enable_grad(), saved_tensors_hooks(_keep_nothing, _keep_nothing):
            for part, chunk in zip(y.split(size), rows.split(size), strict=True):
                part.copy_(run(chunk.detach()).detach())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (rows,) = ctx.saved_tensors
        needs_rows, _, _, *needs = ctx.needs_input_grad
        trained = [one for one, is_needed in zip(ctx.parameters, needs, strict=True) if is_needed]
        grad_rows = torch.empty_like(rows)
        sums: list[Tensor | None] = [None] * len(trained)
        parts = zip(rows.split(ctx.size), gradient.split(ctx.size), grad_rows.split(ctx.size), strict=True)
        for chunk, grad, grad_chunk in reversed(list(parts)):  # in autograd's own order
            x = chunk.detach().requires_grad_()
            with torch.enable_grad(), recomputing():
                y = ctx.run(x.view_as(x))  # torch's hooks on modules take no leaf here
            found, *grads = torch.autograd.grad(y, [x, *trained], grad, allow_unused=True)
            grad_chunk.copy_(found)
            sums = [_add(total, one) for total, one in zip(sums, grads, strict=True)]
        by_parameter = iter(sums)
        grads = [next(by_parameter) if is_needed else None for is_needed in needs]
        return grad_rows if needs_rows else None, None, None, *grads


def _keep_nothing(_: Tensor | None) -> None:
    return None


def _add(total: Tensor | None, one: Tensor | None) -> Tensor | None:
    if total is None or one is None:
        return one if total is None else total
    return total.add_(one)
