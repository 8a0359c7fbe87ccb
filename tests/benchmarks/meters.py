"""Counters for tensors on the meta device. They are exact and the same on every machine; time is not
measured.

FLOPs and memory are counted in separate passes, because torch's FLOP counter keeps tensors alive.
"""

import weakref
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

PRODUCTS = (
    "convolution", "mm", "addmm", "addmm_", "bmm", "baddbmm", "convolution_backward",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward",
)  # fmt: skip

MADE_FROM_NOTHING = ("empty", "new_empty", "empty_like", "detach")


def count_product(_, first, second, *args, **kwargs):
    """Return the FLOPs of `addmm_` from the shapes (m, k) and (k, n)."""
    return 2 * first[0] * first[1] * second[1]


IN_PLACE = {torch.ops.aten.addmm_: count_product}
"""Products that torch's FLOP counter does not know: LoRAs are added in place while sampling."""


def find_tensors(*values):
    """Yield the tensors in arguments or results, which hold them in lists at most."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from find_tensors(*value)


def find_storages(*values):
    """Return the storages of the tensors in values, each once: {identity: storage}."""
    return {storage._cdata: storage for storage in (t.untyped_storage() for t in find_tensors(*values))}


def is_copy_to_host(func, args, kwargs):
    """Return True for a copy of a meta tensor to host memory."""
    target = kwargs.get("device")
    return (
        func is torch.ops.aten._to_copy.default
        and args[0].device.type == "meta"
        and target is not None
        and torch.device(target).type == "cpu"
    )


class HostCopies(TorchDispatchMode):
    """Lets meta tensors be copied to host memory, as decoder states are, and counts the copies.

    A copy is memory that is never written, which costs nothing. Enter it before the counters below.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not is_copy_to_host(func, args, kwargs):
            return func(*args, **kwargs)
        self.count += 1
        return torch.empty_like(args[0], device="cpu", dtype=kwargs.get("dtype"))


class CachedShapes(TorchDispatchMode):
    """Computes the result of a call on the meta device once for each kind of call.

    A step makes the same calls over and over, and most meta kernels are in Python and slow.
    """

    def __init__(self):
        super().__init__()
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = _find_target(func, args, kwargs)
        if target is not None:
            return target
        if any(argument.alias_info for argument in func._schema.arguments):
            return func(*args, **kwargs)  # a view
        key = (func, _describe_argument(args), _describe_argument(tuple(kwargs.items())))
        if key not in self.known:
            out = func(*args, **kwargs)
            if not _is_all_meta(out):
                return out
            self.known[key] = _describe_result(out)
            return out
        return _make_result(self.known[key])


def _find_target(func, args, kwargs):
    """Return the meta tensor that a call writes its result into, if any."""
    first = func._schema.arguments[0].alias_info if args else None
    target = kwargs.get("out", args[0] if first is not None and first.is_write else None)
    return target if isinstance(target, torch.Tensor) and target.device.type == "meta" else None


def _is_all_meta(out):
    """Return True if a result consists of meta tensors alone."""
    parts = out if isinstance(out, list | tuple) else [out]
    return all(
        part is None or isinstance(part, torch.Tensor) and part.device.type == "meta" for part in parts
    )


def _describe_argument(value):
    """Return all of an argument that the shape of a result can depend on."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(map(_describe_argument, value)) if isinstance(value, list | tuple) else value


def _describe_result(out):
    """Return shape, strides and dtype of a result, or a list of them."""
    if isinstance(out, torch.Tensor):
        return out.shape, out.stride(), out.dtype
    return [part if part is None else _describe_result(part) for part in out]


def _make_result(recipe):
    """Make a result from its description."""
    if isinstance(recipe, list):
        return tuple(part if part is None else _make_result(part) for part in recipe)
    shape, stride, dtype = recipe
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


class LiveBytes(TorchDispatchMode):
    """Counts the most bytes that meta tensors made inside hold at one time.

    Tensors that existed before are not counted, and neither are those in host memory.
    """

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        older = find_storages(args, tuple((kwargs or {}).values()))
        for identity, storage in find_storages(out).items():
            if storage.device.type == "meta" and identity not in self.known and identity not in older:
                self._follow(identity, storage)
        return out

    def _follow(self, identity, storage):
        size = storage.nbytes()
        self.known.add(identity)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, identity, size)

    def _forget(self, identity, size):
        self.known.discard(identity)
        self.live -= size


class SavedBytes:
    """Counts the bytes that the graph keeps for backward passes in a step, each tensor once."""

    def __init__(self):
        self.total, self.known = 0, set()

    def keep(self, tensor):
        """Count a tensor; the first hook of saved_tensors_hooks."""
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage._cdata not in self.known:
            self.total += storage.nbytes()
            self.known.add(storage._cdata)
            weakref.finalize(storage, self.known.discard, storage._cdata)
        # Detached: a node that saves its own output would hold itself, and never be freed.
        return tensor.detach()


class MovedBytes(TorchDispatchMode):
    """Counts the bytes read and written by all calls but matrix products, convolutions and attention.

    Copies to host memory are not counted.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        skipped = func.is_view or name in PRODUCTS or name in MADE_FROM_NOTHING
        if not (skipped or is_copy_to_host(func, args, kwargs or {})):
            seen = find_tensors(args, tuple((kwargs or {}).values()), out)
            self.total += sum(tensor.nbytes for tensor in seen)
        return out


@dataclass
class Count:
    """Cost of one step."""

    flops: float = 0.0
    peak: int = 0
    saved: int = 0
    moved: int = 0


@contextmanager
def flash_attention():
    """Let attention run as on a GPU, by the kernel that has no matrix of all pairs.

    It costs 4 N M d FLOPs, and 10 N M d in the backward pass.
    """
    own = F.scaled_dot_product_attention
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    F.scaled_dot_product_attention = lambda query, key, value, **options: flash(query, key, value)[0]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def count_step(step):
    """Run a step of training on meta tensors twice; return its FLOPs and traffic, and its memory."""
    count = Count()
    with flash_attention(), CachedShapes():
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as flops, MovedBytes() as moved:
            step()
        count.flops, count.moved = flops.get_total_flops(), moved.total
        saved = SavedBytes()
        with LiveBytes() as live, torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
            step()
        count.peak, count.saved = live.peak, saved.total
    return count
