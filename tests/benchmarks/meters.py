"""Counters for tensors on the meta device: exact, the same on every machine, and no time.

FLOPs and memory are counted in separate passes, as torch's FLOP counter keeps tensors alive.
"""

import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "convolution_backward")
MADE_FROM_NOTHING = ("empty", "new_empty", "empty_like", "detach")


def storages(tree):
    """Of the tensors in it, each once: {identity: storage}."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at one time; what existed before counts nothing."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        older = storages((args, kwargs))
        for identity, storage in storages(out).items():
            if identity not in self.known and identity not in older:
                self._follow(identity, storage)
        return out

    def _follow(self, identity, storage):
        size = storage.nbytes()
        self.known.add(identity)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, identity, size)

    def _gone(self, identity, size):
        self.known.discard(identity)
        self.live -= size


class MovedBytes(TorchDispatchMode):
    """Bytes read and written by all that is no matrix product, convolution or attention."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if not (func.is_view or name in PRODUCTS or name in MADE_FROM_NOTHING):
            self.total += sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, out)))
        return out


def _bytes(leaf):
    return leaf.numel() * leaf.element_size() if isinstance(leaf, torch.Tensor) else 0


@dataclass
class Count:
    """What one step costs."""

    flops: float = 0.0
    peak: int = 0
    saved: int = 0
    moved: int = 0
    attention: float = field(default=0.0, repr=False)


@contextmanager
def counted_attention(count):
    """Flash attention as it would run: no matrix of all pairs; 4 N M d FLOPs, and 10 N M d in backward."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            out, sums = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
            ctx.save_for_backward(q, k, v, out, sums)
            count.attention += 4 * q.numel() * k.shape[-2]
            return out

        @staticmethod
        def backward(ctx, gradient):
            q, k, v, *_ = ctx.saved_tensors
            count.attention += 10 * q.numel() * k.shape[-2]
            return tuple(map(torch.empty_like, (q, k, v)))

    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, **options: Attention.apply(query, key, value)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def counted(step):
    """Run a step of training on meta tensors twice; its FLOPs and traffic, then its memory."""
    count = Count()
    with counted_attention(count):
        with FlopCounterMode(display=False) as flops, MovedBytes() as moved:
            step()
        count.flops, count.moved = flops.get_total_flops() + count.attention, moved.total
        seen = {}

        def saved(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                storage = tensor.untyped_storage()
                seen.setdefault(storage._cdata, storage.nbytes())
            # Detached: a node that saves its own output would hold itself, and never be freed.
            return tensor.detach()

        with LiveBytes() as live, torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            step()
        count.peak, count.saved = live.peak, sum(seen.values())
    return count
