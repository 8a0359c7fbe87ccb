"""LoRAs whose strength follows the noise level: added to the outputs of the model's linears, for the duration
of one evaluation.

One wrapper around the model's evaluation sets the strengths from sigma, replaces `forward` on the linears,
calls on and puts everything back. No weight is touched, so quantized, offloaded and compiled models work as
they are, and nothing is left in a model that other parts of the graph share.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...smra_core.lora.adapter import replaced_forwards
from ...smra_core.lora.schedule import ScheduledLora, TPoint, choose_strength, describe_run
from ...smra_core.wan.spec import parse_linear
from ..host.versions import compute_dtype_of

log = logging.getLogger("smrabooth")
PREFIX = "diffusion_model."
_FUSED_ACTIVATION = "gelu_tanh"


class CallTimeSwap:
    """An APPLY_MODEL wrapper; one object serves every copy of the model that a run uses."""

    def __init__(self, loras: Sequence[ScheduledLora], t_point_of: Callable[[Any], TPoint]):
        """`t_point_of` gets the host's BaseModel, whose table of noise levels a share of steps needs."""
        self._loras, self._t_point_of = list(loras), t_point_of
        self._states: weakref.WeakKeyDictionary[Any, _ModelState] = weakref.WeakKeyDictionary()
        # One thread per graphics card calls this at once.
        self._lock = threading.Lock()

    def __call__(self, executor, x: Tensor, t: Tensor, *args, **kwargs):
        """`t` holds the sigma of each sample, not the timestep."""
        model = executor.class_obj
        state = self._state(model)
        levels = _run_levels(args, kwargs)
        state.prepare(x.device, compute_dtype_of(model))
        state.set_strengths(self._t_point_of(model), float(t.max()), levels)
        with replaced_forwards(state.replacements(model)):
            result = executor(x, t, *args, **kwargs)
        state.check_reached()
        return result

    def _state(self, model) -> "_ModelState":
        with self._lock:
            state = self._states.get(model)
            if state is None:
                state = self._states[model] = _ModelState(self._loras)
            return state

    def release(self, *_) -> None:
        """Drop the factors on the device; the next run puts them there again."""
        for state in list(self._states.values()):
            state.release()


def _run_levels(args: tuple, kwargs: dict) -> list[float]:
    """Noise levels of the run, empty where a sampler of another pack does not tell them."""
    options = kwargs.get("transformer_options") or next(
        (a for a in reversed(args) if isinstance(a, dict)), {}
    )
    levels = options.get("sample_sigmas")
    return [] if levels is None or len(levels) < 2 else levels.tolist()


class _Addition:
    """What a loader's LoRAs add to the output of one linear."""

    def __init__(self, name: str, pairs: list):
        self.name, self.pairs = name, pairs
        self.factors: list[tuple[Tensor, Tensor, Tensor]] = []
        self.reached = False

    def load(self, strengths: list[Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self.factors = [
            (
                pair.a.detach().to(device, dtype, copy=True),
                (pair.b.detach() * pair.scale).to(device, dtype, copy=True),
                strengths[index],
            )
            for pair, index in self.pairs
        ]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        # Written, never read here: a compiled graph keeps the mark without depending on it.
        self.reached = True
        rows, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        for down, up, strength in self.factors:
            hidden = (F.linear(rows, down.to(rows.dtype)) * strength).to(out.dtype)
            up = up.to(out.dtype).mT
            # In place, since at ffn.0 a second output is hundreds of megabytes; a compiler plans that itself.
            out = torch.addmm(out, hidden, up) if torch.compiler.is_compiling() else out.addmm_(hidden, up)
        return out.reshape(y.shape)


class _ModelState:
    """Everything that belongs to one copy of the model: strengths and factors on its device, and forwards.

    The forwards are kept between evaluations because a compiler guards on their identity.
    """

    def __init__(self, loras: Sequence[ScheduledLora]):
        self.loras = loras
        names = dict.fromkeys(name for lora, _ in loras for name in lora)
        self.additions = {
            name: _Addition(name, [(lora[name], i) for i, (lora, _) in enumerate(loras) if name in lora])
            for name in names
        }
        self.strengths: list[Tensor] = []
        self.place: tuple | None = None
        self.forwards: dict[str, tuple[tuple, Callable]] = {}
        self.levels: list[float] = []
        self.checked = False

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        if self.place == (device, dtype):
            return
        # A tensor born in inference mode could not be filled outside it, nor the other way round.
        with torch.inference_mode(False), torch.no_grad():
            if not self.strengths or self.strengths[0].device != device:
                self.strengths = [torch.zeros((), device=device) for _ in self.loras]
            for addition in self.additions.values():
                addition.load(self.strengths, device, dtype)
        self.place = (device, dtype)

    def release(self) -> None:
        self.place = None
        for addition in self.additions.values():
            addition.factors = []

    def set_strengths(self, t_point: TPoint, sigma: float, levels: list[float]) -> None:
        if levels and levels != self.levels:
            log.info("Sparse LoRA: %s", describe_run(t_point, levels))
        self.levels = levels
        boundary = t_point.estimate_boundary(levels)
        for tensor, (_, strengths) in zip(self.strengths, self.loras, strict=True):
            tensor.fill_(choose_strength(strengths, sigma, boundary))

    def replacements(self, model) -> Iterator[tuple[nn.Module, Callable]]:
        """Yield the modules to change and their forwards with this loader's additions."""
        for name, addition in self.additions.items():
            yield self._target(model, name, addition)

    def _target(self, model, name: str, addition: _Addition) -> tuple[nn.Module, Callable]:
        """The module to replace `forward` on, and the replacement."""
        linear = model.get_submodule(PREFIX + name)
        if name.endswith("ffn.2"):
            feed_forward = model.get_submodule(PREFIX + name.removesuffix(".2"))
            if _skips_down_projection(feed_forward, linear):
                additions = (*getattr(feed_forward.forward, "additions", ()), addition)
                return feed_forward, self._kept(
                    name, (feed_forward, additions), lambda: _fused(feed_forward, additions)
                )
        original = linear.forward
        function = getattr(original, "__func__", original)
        return linear, self._kept(name, (linear, function), lambda: _added(original, addition))

    def _kept(self, name: str, key: tuple, make: Callable[[], Callable]) -> Callable:
        known = self.forwards.get(name)
        if known is None or known[0] != key:
            known = self.forwards[name] = (key, make())
        return known[1]

    def check_reached(self) -> None:
        """RuntimeError when an evaluation went past a linear, which would silently lose a part of the LoRA.

        A block of which nothing ran was skipped on purpose (skip-layer guidance) and is looked at again at
        the next evaluation.
        """
        if self.checked:
            return
        missed = [name for name, addition in self.additions.items() if not addition.reached]
        ran = {parse_linear(name).block for name in self.additions if name not in missed}
        lost = [name for name in missed if parse_linear(name).block in ran] if ran else missed
        if lost:
            raise RuntimeError(
                f"{len(lost)} of {len(self.additions)} layers of the LoRA cannot be reached on this model, "
                f"first {lost[0]}: another node or this checkpoint's format computes them without calling "
                "them. Set constant_lora to 'merge' on the Sparse LoRA Loader and use its model_early and "
                "model_late outputs with two KSampler (Advanced) nodes."
            )
        self.checked = not missed


def _added(original: Callable, addition: _Addition) -> Callable:
    def forward(x, *args, **kwargs):
        return addition(x, original(x, *args, **kwargs))

    return forward


def _skips_down_projection(feed_forward: nn.Module, linear: nn.Module) -> bool:
    """Whether the host computes ffn.2 from its weight alone: it does for INT8, with the activation folded
    in.
    """
    import comfy.ops

    layout = getattr(getattr(linear, "weight", None), "_layout_cls", None)
    ours_or_hosts = "forward" not in feed_forward.__dict__ or hasattr(feed_forward.forward, "additions")
    return (
        hasattr(comfy.ops, "linear_input_act")
        and getattr(layout, "__name__", layout) == "TensorWiseINT8Layout"
        and ours_or_hosts
    )


def _fused(feed_forward: nn.Module, additions: tuple[_Addition, ...]) -> Callable:
    """Forward of a feed-forward net whose second linear is never called, with what several loaders add to
    it.
    """
    from comfy.ops import linear_input_act

    def forward(x):
        hidden = feed_forward[0](x)
        out = linear_input_act(feed_forward[2], hidden, _FUSED_ACTIVATION)
        hidden = F.gelu(hidden, approximate="tanh")
        for addition in additions:
            out = addition(hidden, out)
        return out

    forward.additions = additions
    return forward
