"""LoRAs whose strength follows the noise level, added to the outputs of the model's linears while it is
evaluated.

A wrapper around each evaluation of the model sets the strengths from sigma, replaces `forward` on the
linears, evaluates the model, and restores every `forward`. No weight is changed, so that quantized, offloaded
and compiled models work, and nothing is left in a model that other parts of the graph share.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...smra_core.lora.adapter import LoraPair, replaced_forwards
from ...smra_core.lora.applied_range import describe_applied
from ...smra_core.lora.schedule import ScheduledLora, TPoint, describe_run
from ...smra_core.wan.spec import is_linear
from ..host.versions import compute_dtype_of
from .layer_changes import compute_change
from .reach_check import ReachCheck
from .run_caches import forget_cached_values
from .run_switch import RunSwitch
from .switched_factors import Strength, SwitchedFactors

log = logging.getLogger("smrabooth")
PREFIX = "diffusion_model."
_FUSED_ACTIVATION = "gelu_tanh"


class ScheduledChanges(NamedTuple):
    """Changes of whole parameters, and the LoRA whose strengths they have."""

    changes: dict[str, Tensor]
    """By the native name of the parameter, such as `blocks.0.norm3.weight`."""
    schedule: ScheduledLora


class CallTimeSwap:
    """Wrapper of ComfyUI's APPLY_MODEL; one object serves every copy of the model that a run uses."""

    def __init__(
        self,
        loras: Sequence[ScheduledLora],
        t_point_of: Callable[[Any], TPoint],
        changes: Sequence[ScheduledChanges] = (),
        when_settled: bool = False,
    ):
        """Prepare the LoRAs; `t_point_of` takes ComfyUI's BaseModel, whose table of noise levels a share of
        the steps needs. With `when_settled` a run switches where its motion has settled.
        """
        self._when_settled = when_settled
        self._loras, self._changes, self._t_point_of = list(loras), list(changes), t_point_of
        self._states: weakref.WeakKeyDictionary[Any, _ModelState] = weakref.WeakKeyDictionary()
        # With several graphics cards, one thread for each calls this at the same time.
        self._lock = threading.Lock()

    def __call__(self, executor, x: Tensor, t: Tensor, *args, **kwargs):
        """Evaluate the model with the LoRAs; `t` holds the sigma of each sample, not the timestep."""
        model = executor.class_obj
        state = self._get_state(model)
        options = _read_options(args, kwargs)
        state.prepare(x.device, compute_dtype_of(model))
        changed = state.set_strengths(self._t_point_of(model), float(t.max()), _read_levels(options))
        forget_cached_values(options, changed)
        state.reach_check.start_evaluation()
        with replaced_forwards(state.make_replacements(model)):
            result = executor(x, t, *args, **kwargs)
        state.record_prediction(float(t.max()), result, options)
        state.reach_check.finish_evaluation(changed)
        return result

    def _get_state(self, model) -> "_ModelState":
        with self._lock:
            state = self._states.get(model)
            if state is None:
                state = self._states[model] = _ModelState(self._loras, self._changes, self._when_settled)
            return state

    def release(self, *_) -> None:
        """Free the factors on the device; the next run loads them again."""
        for state in list(self._states.values()):
            state.release()


def _read_options(args: tuple, kwargs: dict) -> dict:
    """Return the transformer_options of an evaluation."""
    return kwargs.get("transformer_options") or next((a for a in reversed(args) if isinstance(a, dict)), {})


def _read_levels(options: dict) -> list[float]:
    """Return the noise levels of the run; none where a sampler of another pack does not give them."""
    levels = options.get("sample_sigmas")
    return [] if levels is None or len(levels) < 2 else levels.tolist()


class _Addition:
    """What the LoRAs of a loader add to the output of one layer."""

    def __init__(self, name: str):
        self.name = name
        self.pairs: list[tuple[LoraPair, int]] = []
        """Low-rank pairs, each with the place of its LoRA's strength."""
        self.changes: list[tuple[dict[str, Tensor], int]] = []
        """Changes of `weight` and `bias`, each with the place of its strength."""
        self.factors: SwitchedFactors | None = None
        self.loaded: list[tuple[Tensor | None, Tensor | None, Strength]] = []
        """The changes of weight and bias on the device."""
        self.reached = False

    def load(self, strengths: list[Strength], device: torch.device, dtype: torch.dtype) -> None:
        """Copy the factors to a device; `strengths` holds one for each LoRA of the loader."""
        pairs = [(pair, strengths[index]) for pair, index in self.pairs]
        self.factors = SwitchedFactors.load(pairs, device, dtype) if pairs else None
        self.loaded = [
            (
                *(None if change is None else change.to(device, dtype, copy=True) for change in parts),
                strengths[index],
            )
            for parts, index in (((c.get("weight"), c.get("bias")), index) for c, index in self.changes)
        ]

    def release(self) -> None:
        """Free the copies on the device."""
        self.factors, self.loaded = None, []

    def __call__(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the output of the layer with the LoRAs; `x` is its input and `y` its output without them.

        Low-rank pairs are of linears, with `x` `... in` and `y` `... out`.
        """
        # Written and never read here, so that a compiled graph keeps the mark without depending on it.
        self.reached = True
        compiling = torch.compiler.is_compiling()
        for weight, bias, strength in self.loaded:
            if compiling or strength.value != 0:
                y = y + (compute_change(layer, x, weight, bias) * strength.tensor).to(y.dtype)
        if self.factors is None:
            return y
        rows, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        # In place, as a second output of ffn.0 is hundreds of megabytes.
        add = self.factors.add_compiled if compiling else self.factors.add_to
        return add(out, rows).reshape(y.shape)


class _ModelState:
    """State of one copy of the model: strengths and factors on its device, and the forwards.

    The forwards are kept between evaluations, because a compiler guards on their identity.
    """

    def __init__(
        self, loras: Sequence[ScheduledLora], changes: Sequence[ScheduledChanges], when_settled: bool = False
    ):
        self.switch = RunSwitch() if when_settled else None
        self.schedules = [*loras, *(one.schedule for one in changes)]
        """What tells the strength of each LoRA and of each set of changes."""
        self.additions: dict[str, _Addition] = {}
        for index, one in enumerate(loras):
            for name, pair in one.lora.items():
                self._get_addition(name).pairs.append((pair, index))
        # A run need not reach the others: the image inputs, where there is no image.
        must_reach = [addition for name, addition in self.additions.items() if is_linear(name)]
        for index, (parameters, _) in enumerate(changes, start=len(loras)):
            for layer, parts in _sort_by_layer(parameters).items():
                self._get_addition(layer).changes.append((parts, index))
        self.strengths: list[Strength] = []
        self.loaded_for: tuple | None = None
        """Device and dtype that the factors are loaded for, or None."""
        self.forwards: dict[str, tuple[tuple, Callable]] = {}
        self.levels: list[float] = []
        self.values: list[float] = []
        """Strengths of the last evaluation, one for each LoRA."""
        self.reach_check = ReachCheck(must_reach)

    def _get_addition(self, name: str) -> _Addition:
        return self.additions.setdefault(name, _Addition(name))

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load the factors for this device and dtype, unless they are there."""
        if self.loaded_for == (device, dtype):
            return
        # A tensor made in inference mode could not be filled outside of it, nor the other way round.
        with torch.inference_mode(False), torch.no_grad():
            if not self.strengths or self.strengths[0].tensor.device != device:
                self.strengths = [Strength(device) for _ in self.schedules]
            for addition in self.additions.values():
                addition.load(self.strengths, device, dtype)
        self.loaded_for = (device, dtype)

    def release(self) -> None:
        """Free the factors, and begin a new run."""
        if self.switch is not None:
            self.switch.finish_run()
        self.reach_check.finish_run()
        self.loaded_for, self.values = None, []
        for addition in self.additions.values():
            addition.release()

    def set_strengths(self, t_point: TPoint, sigma: float, levels: list[float]) -> bool:
        """Set the strengths for an evaluation at `sigma`, in a run over these noise levels; return whether
        they differ from those of the evaluation before.
        """
        if levels and levels != self.levels:
            if self.switch is None:
                log.info("Sparse LoRA: %s", describe_run(t_point, levels))
            for noise_range in {one.noise_range for one in self.schedules if not one.noise_range.is_whole}:
                log.info("Sparse LoRA: %s", describe_applied(noise_range, levels))
        self.levels = levels
        if self.switch is not None and levels:
            boundary = self.switch.find_boundary(sigma, levels)
        else:
            boundary = t_point.estimate_boundary(levels)
        values = [one.get_strength(sigma, boundary, levels) for one in self.schedules]
        for strength, value in zip(self.strengths, values, strict=True):
            strength.set(value)
        before, self.values = self.values, values
        return values != before

    def record_prediction(self, sigma: float, x0: Tensor, options: dict) -> None:
        """Show a run that switches by itself what the model has predicted, `B C f h w`."""
        if self.switch is not None:
            self.switch.record(sigma, x0, options)

    def make_replacements(self, model) -> Iterator[tuple[nn.Module, Callable]]:
        """Yield the modules to change and their forwards with this loader's additions."""
        yield from self.reach_check.make_replacements(model.get_submodule(PREFIX + "blocks"))
        for name, addition in self.additions.items():
            yield self._make_replacement(model, name, addition)

    def _make_replacement(self, model, name: str, addition: _Addition) -> tuple[nn.Module, Callable]:
        """Return the module to replace `forward` on, and the replacement."""
        linear = model.get_submodule(PREFIX + name)
        if name.endswith("ffn.2"):
            feed_forward = model.get_submodule(PREFIX + name.removesuffix(".2"))
            if _is_fused(feed_forward, linear):
                additions = (*getattr(feed_forward.forward, "additions", ()), addition)
                return feed_forward, self._remember(
                    name, (feed_forward, additions), lambda: _make_fused_forward(feed_forward, additions)
                )
        original = linear.forward
        function = getattr(original, "__func__", original)
        return linear, self._remember(
            name, (linear, function), lambda: _make_forward(linear, original, addition)
        )

    def _remember(self, name: str, key: tuple, make: Callable[[], Callable]) -> Callable:
        """Return the forward that was made for this key before, else make it."""
        known = self.forwards.get(name)
        if known is None or known[0] != key:
            known = self.forwards[name] = (key, make())
        return known[1]


def _sort_by_layer(parameters: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the changes `weight` and `bias` of each layer, from those of its parameters."""
    sorted_: dict[str, dict[str, Tensor]] = {}
    for name, change in parameters.items():
        layer, _, kind = name.rpartition(".")
        sorted_.setdefault(layer, {})[kind] = change
    return sorted_


def _make_forward(layer: nn.Module, original: Callable, addition: _Addition) -> Callable:
    """Return a layer's forward with what the LoRAs add."""

    def forward(x, *args, **kwargs):
        return addition(layer, x, original(x, *args, **kwargs))

    return forward


def _is_fused(feed_forward: nn.Module, linear: nn.Module) -> bool:
    """Whether ComfyUI computes ffn.2 fused with the activation, without calling the module (INT8)."""
    import comfy.ops

    layout = getattr(getattr(linear, "weight", None), "_layout_cls", None)
    ours_or_hosts = "forward" not in feed_forward.__dict__ or hasattr(feed_forward.forward, "additions")
    return (
        hasattr(comfy.ops, "linear_input_act")
        and getattr(layout, "__name__", layout) == "TensorWiseINT8Layout"
        and ours_or_hosts
    )


def _make_fused_forward(feed_forward: nn.Module, additions: tuple[_Addition, ...]) -> Callable:
    """Return the forward of a feed-forward net whose second linear is never called, with the additions of
    several loaders.
    """
    from comfy.ops import linear_input_act

    def forward(x):
        hidden = feed_forward[0](x)
        out = linear_input_act(feed_forward[2], hidden, _FUSED_ACTIVATION)
        hidden = F.gelu(hidden, approximate="tanh")
        for addition in additions:
            out = addition(feed_forward[2], hidden, out)
        return out

    forward.additions = additions
    return forward
