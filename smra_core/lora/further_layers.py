"""Changes of further layers that LoRA files of other trainers hold: of image inputs, norms, biases,
embeddings and the head.

Which layers a model has is known only when one is there, so that a file's tensors are kept by the names that
the file has, and matched with a model's parameters later.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..storage.weight_check import is_finite
from ..wan.spec import is_linear
from .account import name_unused_kind
from .adapter import Lora
from .dialects import parse_further_key
from .factors import build_pair
from .scale import AdapterConfig

if TYPE_CHECKING:
    from .choice import ChosenKeys


class FurtherParts(NamedTuple):
    """Tensors of a file that are changes of other layers than WAN's own linears of the blocks."""

    tensors: dict[str, dict[str, Tensor]]
    """Tensors `a`, `b`, `alpha`, `diff` and `diff_b` of each layer, by its name without prefixes."""
    keys: dict[str, dict[str, str]]
    """Their names in the file."""
    config: AdapterConfig | None
    source: str


class FurtherLayers(NamedTuple):
    """What of a file's further parts fits a model."""

    pairs: Lora
    """LoRA pairs by the native name of a linear."""
    changes: dict[str, Tensor]
    """Changes of whole parameters by their native name, such as `blocks.0.norm3.weight`."""
    used: frozenset[str]
    """Names in the file of the tensors that are used."""

    def count_layers(self) -> int:
        """Return the number of layers that are changed, beside the linears of the blocks."""
        changed = self.pairs.keys() | {name.rpartition(".")[0] for name in self.changes}
        return sum(1 for name in changed if not is_linear(name))


NOTHING = FurtherLayers({}, {}, frozenset())


def collect_further_parts(
    tensors: Mapping[str, Tensor], chosen: "ChosenKeys", config: AdapterConfig | None, source: str
) -> FurtherParts:
    """Collect the tensors of other layers that belong to the chosen expert and adapter."""
    adapters = {None, *(key.adapter for key in chosen.parsed.values())}
    parts = FurtherParts(defaultdict(dict), defaultdict(dict), config, source)
    for _, name in chosen.unused:
        key = parse_further_key(name)
        if key is None or key.expert != chosen.expert or key.adapter not in adapters:
            continue
        if key.factor not in parts.tensors[key.module]:
            parts.tensors[key.module][key.factor] = tensors[name]
            parts.keys[key.module][key.factor] = name
    return parts


def match_further_layers(parts: FurtherParts, shapes: Mapping[str, Sequence[int]]) -> FurtherLayers:
    """Return the changes that fit a model, whose parameters have these shapes by native name.

    A change of an unknown layer or of another shape is left out. Raises ValueError for a pair that is of a
    layer of the model and cannot be read.
    """
    natives = {name.removesuffix(".weight") for name in shapes if name.endswith(".weight")}
    flat = {name.replace(".", "_"): name for name in natives}
    pairs, changes, used = {}, {}, set()
    for module, tensors in parts.tensors.items():
        native = module if module in natives else flat.get(module)
        if native is None:
            continue
        pair, whole = _sort_parts(native, tensors, shapes)
        if pair:
            pairs[native] = build_pair(native, pair, module, parts.config, parts.source)
        changes |= {f"{native}.{kind}": _check(tensor, parts.source) for kind, tensor in whole.items()}
        names = {"weight": "diff", "bias": "diff_b"}
        used |= {parts.keys[module][factor] for factor in (*pair, *(names[kind] for kind in whole))}
    return FurtherLayers(pairs, changes, frozenset(used))


def _sort_parts(
    native: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the factors of a pair and the changes of weight and bias that fit a layer."""
    weight, bias = tuple(shapes[f"{native}.weight"]), tuple(shapes.get(f"{native}.bias", ()))
    pair = {factor: tensors[factor] for factor in ("a", "b", "alpha") if factor in tensors}
    if not {"a", "b"} <= pair.keys() or (*pair["b"].shape[:1], *pair["a"].shape[1:]) != weight:
        pair = {}
    whole = {}
    if "diff" in tensors and tuple(tensors["diff"].shape) == weight and not pair:
        if len(weight) == 2:
            pair = {"diff": tensors["diff"]}
        else:
            whole["weight"] = tensors["diff"]
    if "diff_b" in tensors and tuple(tensors["diff_b"].shape) == bias:
        whole["bias"] = tensors["diff_b"]
    return pair, whole


def _check(tensor: Tensor, source: str) -> Tensor:
    if not (tensor.is_floating_point() and is_finite(tensor)):
        raise ValueError(f"{source} holds a change with NaN or infinite values. Download it again.")
    return tensor.float()


def describe_further_layers(layers: FurtherLayers) -> str:
    """Return a sentence on what is used beyond the linears of the blocks, by kind."""
    counts: dict[str, int] = defaultdict(int)
    for name in sorted(layers.used):
        counts[name_unused_kind(name)] += 1
    kinds = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
    return f"also used, as all layers are chosen: {len(layers.used)} tensors of other layers ({kinds})"
