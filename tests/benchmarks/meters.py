"""Counters for tensors on the meta device: exact, the same on every machine, and no time.

FLOPs and memory are counted in separate passes, as torch's FLOP counter keeps tensors alive.
"""

import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "convolution_backward")
MADE_FROM_NOTHING = ("empty", "new_empty", "empty_like", "detach")


def tensors_of(*values):
    """Tensors in arguments or results, which hold them in lists at most."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(*value)


def storages(*values):
    """Of the tensors in them, each once: {identity: storage}."""
    return {storage._cdata: storage for storage in (t.untyped_storage() for t in tensors_of(*values))}


class Remembered(TorchDispatchMode):
    """What a call gives on the meta device, worked out once for each kind of call.

    A step makes the same calls over and over, and most meta kernels are in Python and slow.
    """

    def __init__(self):
        super().__init__()
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = _written(func, args, kwargs)
        if target is not None:
            return target
        if any(argument.alias_info for argument in func._schema.arguments):
            return func(*args, **kwargs)  # a view
        key = (func, _kind(args), _kind(tuple(kwargs.items())))
        if key not in self.known:
            out = func(*args, **kwargs)
            if not _all_new(out):
                return out
            self.known[key] = _recipe(out)
            return out
        return _made(self.known[key])


def _written(func, args, kwargs):
    """The meta tensor that a call writes its result into, if any."""
    first = func._schema.arguments[0].alias_info if args else None
    target = kwargs.get("out", args[0] if first is not None and first.is_write else None)
    return target if isinstance(target, torch.Tensor) and target.device.type == "meta" else None


def _all_new(out):
    """Whether a result is meta tensors alone."""
    parts = out if isinstance(out, list | tuple) else [out]
    return all(
        part is None or isinstance(part, torch.Tensor) and part.device.type == "meta" for part in parts
    )


def _kind(value):
    """All that the shape of a result can depend on."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(map(_kind, value)) if isinstance(value, list | tuple) else value


def _recipe(out):
    if isinstance(out, torch.Tensor):
        return out.shape, out.stride(), out.dtype
    return [part if part is None else _recipe(part) for part in out]


def _made(recipe):
    if isinstance(recipe, list):
        return tuple(part if part is None else _made(part) for part in recipe)
    shape, stride, dtype = recipe
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


class LiveBytes(TorchDispatchMode):
    """The most bytes that meta tensors made inside held at one time; what existed before counts nothing, and
    neither does what waits in host memory.
    """

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        older = storages(args, tuple((kwargs or {}).values()))
        for identity, storage in storages(out).items():
            if storage.device.type == "meta" and identity not in self.known and identity not in older:
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


class SavedBytes:
    """Bytes that the graph keeps for backward passes, each tensor once, all through a step."""

    def __init__(self):
        self.total, self.known = 0, set()

    def keep(self, tensor):
        """For saved_tensors_hooks."""
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage._cdata not in self.known:
            self.total += storage.nbytes()
            self.known.add(storage._cdata)
            weakref.finalize(storage, self.known.discard, storage._cdata)
        # Detached: a node that saves its own output would hold itself, and never be freed.
        return tensor.detach()


class MovedBytes(TorchDispatchMode):
    """Bytes read and written by all that is no matrix product, convolution or attention."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if not (func.is_view or name in PRODUCTS or name in MADE_FROM_NOTHING):
            seen = tensors_of(args, tuple((kwargs or {}).values()), out)
            self.total += sum(tensor.nbytes for tensor in seen)
        return out


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
    with counted_attention(count), Remembered():
        with FlopCounterMode(display=False) as flops, MovedBytes() as moved:
            step()
        count.flops, count.moved = flops.get_total_flops() + count.attention, moved.total
        saved = SavedBytes()
        with LiveBytes() as live, torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
            step()
        count.peak, count.saved = live.peak, saved.total
    return count
